"""A replay's figures as a table, as JSON, and as JSON lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from operators.authoring import nearest_rank
from rx_backend.replay.figures import ReplayResult

__all__ = ("Quantiles", "Summary", "format_table", "summarize", "write_requests", "write_summary")


class Quantiles(msgspec.Struct, frozen=True, kw_only=True):
    """Nearest-rank quantiles (row F4) in ms; None when there was no sample."""

    p50: float | None
    p90: float | None
    p99: float | None
    max: float | None


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A replay in a few figures."""

    requests: int
    completed: int
    """Requests that ended by themselves, with `length`, `stop` and the like."""
    cancelled: int
    dropped: int
    errors: dict[str, int]
    """Failed requests by the kind of error."""
    prompt_tokens: int
    tokens: int
    duration_s: float
    """From the first arrival to the last end, in seconds of the loop's clock."""
    tokens_per_s: float
    requests_per_s: float
    ttft_ms: Quantiles
    itl_ms: Quantiles


def summarize(result: ReplayResult) -> Summary:
    """Sum up *result*."""
    outcomes = Counter(row.outcome for row in result.requests)
    failed = ("cancelled", "dropped", "error")
    errors = Counter(row.error for row in result.requests if row.error is not None)
    ttft = sorted(row.ttft_ms for row in result.requests if row.ttft_ms is not None)
    tokens = result.tokens
    seconds = result.duration_s
    return Summary(
        requests=len(result.requests),
        completed=len(result.requests) - sum(outcomes[name] for name in failed),
        cancelled=outcomes["cancelled"],
        dropped=outcomes["dropped"],
        errors=dict(sorted(errors.items())),
        prompt_tokens=sum(row.prompt_tokens for row in result.requests),
        tokens=tokens,
        duration_s=round(seconds, 3),
        tokens_per_s=round(tokens / seconds, 1) if seconds else 0.0,
        requests_per_s=round(len(result.requests) / seconds, 3) if seconds else 0.0,
        ttft_ms=_quantiles(ttft),
        itl_ms=Quantiles(
            p50=result.itl.quantile(0.5),
            p90=result.itl.quantile(0.9),
            p99=result.itl.quantile(0.99),
            max=result.itl.quantile(1.0),
        ),
    )


def format_table(summary: Summary) -> str:
    """Return *summary* as a table of plain text, without a newline at the end."""
    errors = sum(summary.errors.values())
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in summary.errors.items())
    lines = [
        ("requests", f"{summary.requests:,}", f"{summary.requests_per_s:,.2f} per s"),
        ("  completed", f"{summary.completed:,}", ""),
        ("  cancelled", f"{summary.cancelled:,}", ""),
        ("  dropped", f"{summary.dropped:,}", ""),
        ("  errors", f"{errors:,}", kinds),
        ("prompt tokens", f"{summary.prompt_tokens:,}", ""),
        ("output tokens", f"{summary.tokens:,}", f"{summary.tokens_per_s:,.1f} per s"),
        ("duration", f"{summary.duration_s:,.1f} s", ""),
    ]
    text = [f"{name:<15}{value:>12}  {note}".rstrip() for name, value, note in lines]
    text.append("")
    text.append(f"{'':<15}{'p50':>12}{'p90':>12}{'p99':>12}{'max':>12}")
    for name, figures in (("TTFT, ms", summary.ttft_ms), ("ITL, ms", summary.itl_ms)):
        cells = (figures.p50, figures.p90, figures.p99, figures.max)
        shown = "".join("{:>12}".format("-" if v is None else f"{v:,.2f}") for v in cells)
        text.append(f"{name:<15}{shown}")
    return "\n".join(text)


def write_requests(path: str | Path, result: ReplayResult) -> None:
    """Write the figures of each request as a line of JSON, in the order of the workload."""
    encode = msgspec.json.Encoder().encode
    rows = sorted(result.requests, key=lambda row: row.index)
    with Path(path).open("wb") as out:
        out.writelines(encode(row) + b"\n" for row in rows)


def write_summary(path: str | Path, summary: Summary) -> None:
    """Write *summary* as one JSON object."""
    text = msgspec.json.format(msgspec.json.encode(summary), indent=2)
    Path(path).write_bytes(text + b"\n")


def _quantiles(ordered: Sequence[float]) -> Quantiles:
    if not ordered:
        return Quantiles(p50=None, p90=None, p99=None, max=None)
    return Quantiles(
        p50=nearest_rank(ordered, 0.5),
        p90=nearest_rank(ordered, 0.9),
        p99=nearest_rank(ordered, 0.99),
        max=ordered[-1],
    )
