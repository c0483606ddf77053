"""
Write docs/grafana/rx-backend.json: a dashboard over the library's metrics, to import in Grafana.

Metrics and labels have their Prometheus names: dots become underscores, and a unit or `total` is
appended.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Final

from tools.document import ROOT, publish
from tools.grafana import Panel, dashboard, variable

__all__ = ("PATH", "PICKED", "ROWS", "render")

PATH: Final = ROOT / "docs/grafana/rx-backend.json"

PICKED: Final = 'gen_ai_request_model=~"$model",rx_backend_mode=~"$mode"'
"""The selection at the top of the dashboard, as labels of a query."""

_REQUESTS: Final = "rx_backend_requests_total"
_ACTIVE: Final = "rx_backend_requests_active"
_WASTED: Final = "rx_backend_tokens_wasted_total"
_RESUMABLE: Final = "rx_backend_resumable"
_CHUNKS: Final = "rx_backend_coalesce_chunks_total"


def _rate(metric: str, more: str = "", *, by: str = "", picked: str = PICKED) -> str:
    """Return the query for events per second."""
    grouped = f" by ({by})" if by else ""
    labels = ",".join(filter(None, (picked, more)))
    return f"sum{grouped} (rate({metric}{{{labels}}}[$__rate_interval]))"


def _part(more: str) -> str:
    """Return the query for the share of requests with the labels *more*."""
    return f"({_rate(_REQUESTS, more)} or vector(0)) / {_rate(_REQUESTS)}"


def _quantile(q: float, histogram: str) -> str:
    return f"histogram_quantile({q}, {_rate(f'{histogram}_bucket', by='le')})"


def _latency(title: str, histogram: str, what: str, *, width: int = 8) -> Panel:
    queries = {f"p{q * 100:g}": _quantile(q, histogram) for q in (0.5, 0.95, 0.99)}
    return Panel(title=title, what=what, queries=queries, unit="s", width=width)


def _stat(title: str, what: str, query: str, unit: str, *alarms: float, width: int = 4) -> Panel:
    """Return a panel with one figure, which turns yellow and then red at the *alarms*."""
    colors = zip(("green", "yellow", "red"), (None, *alarms), strict=False)
    steps = [{"color": color, "value": value} for color, value in colors]
    options = {"thresholds": {"mode": "absolute", "steps": steps}}
    return Panel(
        title=title,
        what=what,
        queries={"": query},
        unit=unit,
        kind="stat",
        width=width,
        options=options,
    )


def _merged() -> str:
    """Return the query for the ratio of chunks before to chunks after coalescing."""
    into, out = (_rate(_CHUNKS, f'rx_backend_side="{side}"', picked="") for side in ("in", "out"))
    return f"{into} / {out}"


_STACKED: Final = {"custom": {"stacking": {"mode": "normal"}, "fillOpacity": 30}}

ROWS: Final[Mapping[str, tuple[Panel, ...]]] = {
    "Now": (
        _stat("Requests", "Requests that ended, per second.", _rate(_REQUESTS), "reqps"),
        _stat(
            "Failed",
            "Part of the requests that failed. Clients that left early are not among them.",
            _part('error_type!~"|Dropped"'),
            "percentunit",
            0.01,
            0.05,
        ),
        _stat(
            "Dropped",
            "Part of the requests whose stream was given up before its end: mostly clients that left.",
            _part('error_type="Dropped"'),
            "percentunit",
            0.1,
            0.3,
        ),
        _stat("In flight", "Streams that are open.", f"sum ({_ACTIVE}{{{PICKED}}})", "short"),
        _stat(
            "TTFT, p95",
            "Time to the first token. Yellow from 1 s, red from 5 s: set these to what you promise.",
            _quantile(0.95, "gen_ai_server_time_to_first_token_seconds"),
            "s",
            1,
            5,
            width=8,
        ),
    ),
    "Traffic": (
        Panel(
            title="Requests, by how they ended",
            what="The engine's finish reason; `failed` after an error, `dropped` where there was no "
            "terminal, `setup_failed` where there was no stream.",
            queries={
                "{{rx_backend_finish_reason}}": _rate(_REQUESTS, by="rx_backend_finish_reason")
            },
            unit="reqps",
            options=_STACKED,
        ),
        Panel(
            title="Failures, by type",
            what="`error.type`: the kind of the error; ErrorTerminal where the engine said so in its "
            "terminal; Dropped where the stream was given up.",
            queries={"{{error_type}}": _rate(_REQUESTS, 'error_type!=""', by="error_type")},
            unit="reqps",
            options=_STACKED,
        ),
        Panel(
            title="In flight, by role",
            what="Streams that are open. A line that only rises is a client that reads no further, or "
            "an engine that hangs.",
            queries={
                "{{rx_backend_mode}}": f"sum by (rx_backend_mode) ({_ACTIVE}{{{PICKED}}})",
            },
            unit="short",
        ),
        Panel(
            title="Failures since the workers began",
            what="As counted, not per second: the first failure of a type is no rate yet.",
            queries={
                "{{error_type}}": f'sum by (error_type) ({_REQUESTS}{{{PICKED},error_type!=""}})'
            },
            unit="short",
            kind="bargauge",
        ),
        Panel(
            title="Tokens per second",
            what="Tokens of prompts, and tokens handed out.",
            queries={
                "{{gen_ai_token_type}}": _rate("rx_backend_tokens_total", by="gen_ai_token_type")
            },
            unit="short",
        ),
        _latency(
            "Duration",
            "gen_ai_server_request_duration_seconds",
            "From the request to its stream's end, however it ended.",
        ),
    ),
    "Latency of tokens": (
        _latency(
            "Time to first token",
            "gen_ai_server_time_to_first_token_seconds",
            "With the engine's set-up and the queue; of requests that ended well.",
        ),
        _latency(
            "Gap between tokens (ITL)",
            "rx_backend_inter_token_latency_seconds",
            "Before each chunk with tokens but the first. One gap in 256 is measured.",
        ),
        _latency(
            "Time per output token (TPOT)",
            "gen_ai_server_time_per_output_token_seconds",
            "One figure for each request that ended well: its time after the first token, by the "
            "number of its further tokens. A single stall does not show here, but in the gaps.",
        ),
    ),
    "Queue, aborts, deadlines": (
        _latency(
            "Queue",
            "rx_backend_queue_time_seconds",
            "How long requests waited for their turn; empty where the engine does not say.",
        ),
        Panel(
            title="Aborts",
            what="`immediate` ones; `deferred` ones, which a decode worker held back until its first "
            "token; and `suppressed` ones, which were not needed any more.",
            queries={
                "{{rx_backend_abort}}": _rate("rx_backend_aborts_total", by="rx_backend_abort")
            },
            unit="ops",
        ),
        Panel(
            title="Deadlines that passed",
            what="By the option of the operator `deadlines`; empty where it is not in use.",
            queries={
                "{{rx_backend_deadline}}": _rate(
                    "rx_backend_deadlines_total", by="rx_backend_deadline"
                )
            },
            unit="ops",
        ),
    ),
    "Resumable streams, of all models": (
        Panel(
            title="Streams and readers",
            what="Answers that run, those that have ended and are kept, and the clients that read "
            "them. Empty without `ResumableStreams`, as is this row.",
            queries={
                "{{rx_backend_state}}": f"sum by (rx_backend_state) ({_RESUMABLE}_streams)",
                "readers": f"sum ({_RESUMABLE}_readers)",
            },
            unit="short",
        ),
        Panel(
            title="Bytes held",
            what="Of the items of all streams; `max_bytes` bounds each stream.",
            queries={"bytes": f"sum ({_RESUMABLE}_held_bytes)"},
            unit="bytes",
        ),
        Panel(
            title="Engines that wait for a reader",
            what="By the option that makes them wait. A line that stays up is slow clients, or a "
            "`max_ahead` or `max_bytes` that is small for them.",
            queries={
                "{{rx_backend_limit}}": f"sum by (rx_backend_limit) ({_RESUMABLE}_waiting)",
            },
            unit="short",
        ),
        Panel(
            title="Clients that came back",
            what="By outcome. Many `position_dropped` mean that `max_bytes` is too small, many "
            "`not_found` that `keep_s` is, or that clients reach a process without their stream.",
            queries={
                "{{rx_backend_outcome}}": _rate(
                    f"{_RESUMABLE}_resumes_total", by="rx_backend_outcome", picked=""
                )
            },
            unit="reqps",
            options=_STACKED,
        ),
        Panel(
            title="Limits that took effect",
            what="`linger_s` stops what nobody came back for; `max_streams` refuses or evicts; "
            "`max_bytes` drops what was read, or fails a reader that fell behind.",
            queries={
                "{{rx_backend_limit}}: {{rx_backend_effect}}": _rate(
                    f"{_RESUMABLE}_limit_hits_total",
                    by="rx_backend_limit, rx_backend_effect",
                    picked="",
                )
            },
            unit="ops",
        ),
    ),
    "The worker itself": (
        Panel(
            title="Chunks that travel together",
            what="Chunks from the pipeline for each one handed to the runtime. 1 is a client that "
            "keeps up; it rises where clients lag. All models and roles.",
            queries={"chunks": _merged()},
            unit="short",
            width=12,
        ),
        Panel(
            title="Tokens wasted",
            what="What the losers of races read and made, and what was read again after an engine was "
            "lost; empty without `HedgedEngine` and `FailoverEngine`.",
            queries={"{{gen_ai_token_type}}": _rate(_WASTED, by="gen_ai_token_type")},
            unit="short",
            width=12,
        ),
    ),
}


def render() -> str:
    """Write the document."""
    choices = [
        variable("model", "Model", f"label_values({_ACTIVE}, gen_ai_request_model)"),
        variable("mode", "Role", f"label_values({_ACTIVE}, rx_backend_mode)"),
    ]
    what = "Requests, latency, tokens and aborts of rx-backend's workers."
    return json.dumps(dashboard("rx-backend", what, ROWS, choices), indent=2) + "\n"


if __name__ == "__main__":
    sys.exit(publish(PATH, render(), []))
