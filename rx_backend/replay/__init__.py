"""Replay a workload through the adapter, and report the clients' latencies."""

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
from rx_backend.replay.traces import Trace, read_trace
from rx_backend.replay.workload import Request, at_speed, synthetic

__all__ = (
    "LatencyCounts",
    "Quantiles",
    "ReplayResult",
    "Request",
    "RequestFigures",
    "Summary",
    "Trace",
    "at_speed",
    "format_table",
    "read_trace",
    "replay",
    "summarize",
    "synthetic",
    "write_requests",
    "write_summary",
)
