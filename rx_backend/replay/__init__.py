"""Replay a workload through the adapter, and report what its clients saw."""

from rx_backend.replay.figures import LatencyCounts, ReplayResult, RequestFigures
from rx_backend.replay.report import (
    Quantiles,
    Summary,
    format_table,
    summarize,
    write_requests,
    write_summary,
)
from rx_backend.replay.runner import replay
from rx_backend.replay.workload import Request, at_speed, read_trace, synthetic

__all__ = (
    "LatencyCounts",
    "Quantiles",
    "ReplayResult",
    "Request",
    "RequestFigures",
    "Summary",
    "at_speed",
    "format_table",
    "read_trace",
    "replay",
    "summarize",
    "synthetic",
    "write_requests",
    "write_summary",
)
