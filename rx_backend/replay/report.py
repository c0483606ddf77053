"""The figures of a replay as a table, as JSON, and as JSON Lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from operators.authoring import nearest_rank
from rx_backend.checks import file_path, instance
from rx_backend.replay.figures import ReplayResult
from rx_backend.whole_file import write_whole

__all__ = ("Quantiles", "Summary", "format_table", "summarize", "write_requests", "write_summary")


class Quantiles(msgspec.Struct, frozen=True, kw_only=True):
    """Nearest-rank quantiles (row F4) in ms; None without samples."""

    p50: float | None
    p90: float | None
    p99: float | None
    max: float | None


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The main figures of a replay."""

    title: str
    """What was replayed, on which engine."""
    stopped_by: str | None
    """Why the replay ended before its workload; None if it did not."""
    planned: int | None
    """Requests in the workload; None if unknown."""
    requests: int
    completed: int
    """Requests that ended normally, with `length`, `stop` and the like."""
    cancelled: int
    dropped: int
    interrupted: int
    """Requests in flight when the replay was stopped."""
    errors: dict[str, int]
    """Failed requests by the kind of error."""
    truncated: int
    """Requests whose prompt or output was truncated to the engine's context."""
    context_length: int | None
    """The engine's context, in tokens; None if unknown."""
    prompt_tokens: int
    tokens: int
    duration_s: float
    """From the first arrival to the last end, in seconds of the loop's clock."""
    tokens_per_s: float
    requests_per_s: float
    ttft_ms: Quantiles
    itl_ms: Quantiles


def summarize(result: ReplayResult) -> Summary:
    """Return the main figures of *result*."""
    instance("result", result, ReplayResult)
    rows, seconds = result.requests, result.duration_s
    outcomes = Counter(row.outcome for row in rows)
    others = sum(outcomes[name] for name in ("cancelled", "dropped", "interrupted", "error"))
    errors = Counter(row.error for row in rows if row.error is not None)
    tokens = sum(row.tokens for row in rows)
    itl = {f"p{q}": result.itl.quantile(q / 100) for q in (50, 90, 99)}
    return Summary(
        title=result.title,
        stopped_by=result.stopped_by,
        planned=result.planned,
        requests=len(rows),
        completed=len(rows) - others,
        cancelled=outcomes["cancelled"],
        dropped=outcomes["dropped"],
        interrupted=outcomes["interrupted"],
        errors=dict(sorted(errors.items())),
        truncated=result.truncated,
        context_length=result.context_length,
        prompt_tokens=sum(row.prompt_tokens for row in rows),
        tokens=tokens,
        duration_s=round(seconds, 3),
        tokens_per_s=round(tokens / seconds, 1) if seconds else 0.0,
        requests_per_s=round(len(rows) / seconds, 3) if seconds else 0.0,
        ttft_ms=_quantiles(sorted(row.ttft_ms for row in rows if row.ttft_ms is not None)),
        itl_ms=Quantiles(**itl, max=result.itl.quantile(1.0)),
    )


def format_table(summary: Summary) -> str:
    """Return *summary* as a table of plain text, without a newline at the end."""
    instance("summary", summary, Summary)
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in summary.errors.items())
    lines = [
        ("requests", f"{summary.requests:,}", f"{summary.requests_per_s:,.2f} per s"),
        ("  completed", f"{summary.completed:,}", ""),
        ("  cancelled", f"{summary.cancelled:,}", ""),
        ("  dropped", f"{summary.dropped:,}", ""),
        ("  errors", f"{sum(summary.errors.values()):,}", kinds),
        ("prompt tokens", f"{summary.prompt_tokens:,}", ""),
        ("output tokens", f"{summary.tokens:,}", f"{summary.tokens_per_s:,.1f} per s"),
        ("duration", f"{summary.duration_s:,.1f} s", ""),
    ]
    text: list[str] = []
    if summary.truncated:
        note = f"to the context of {summary.context_length:,} tokens"
        lines.insert(1, ("  truncated", f"{summary.truncated:,}", note))
    if summary.stopped_by is not None:
        of = "" if summary.planned is None else f" of {summary.planned:,}"
        text += [f"stopped early after {summary.requests:,}{of} requests: {summary.stopped_by}", ""]
        lines.insert(-3, ("  interrupted", f"{summary.interrupted:,}", "in flight when stopped"))
    text += [f"{name:<15}{value:>12}  {note}".rstrip() for name, value, note in lines]
    text += ["", f"{'':<15}{'p50':>12}{'p90':>12}{'p99':>12}{'max':>12}"]
    for name, figures in (("TTFT, ms", summary.ttft_ms), ("ITL, ms", summary.itl_ms)):
        cells = (figures.p50, figures.p90, figures.p99, figures.max)
        shown = "".join("{:>12}".format("-" if v is None else f"{v:,.2f}") for v in cells)
        text.append(f"{name:<15}{shown}")
    return "\n".join(text)


def write_requests(path: str | Path, result: ReplayResult) -> None:
    """
    Write the figures of each request as a line of JSON, in the order of the workload.

    If the replay was stopped early, the last line is ``{"stopped_by":"interrupt"}``.
    """
    instance("result", result, ReplayResult)
    rows = sorted(result.requests, key=lambda row: row.index)
    stopped = [] if result.stopped_by is None else [{"stopped_by": result.stopped_by}]
    write_whole(file_path("path", path), msgspec.json.Encoder().encode_lines([*rows, *stopped]))


def write_summary(path: str | Path, summary: Summary) -> None:
    """Write *summary* as one JSON object."""
    instance("summary", summary, Summary)
    content = msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n"
    write_whole(file_path("path", path), content)


def _quantiles(ordered: Sequence[float]) -> Quantiles:
    if not ordered:
        return Quantiles(p50=None, p90=None, p99=None, max=None)
    p50, p90, p99 = (nearest_rank(ordered, q) for q in (0.5, 0.9, 0.99))
    return Quantiles(p50=p50, p90=p90, p99=p99, max=ordered[-1])
