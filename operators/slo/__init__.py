"""Latency targets: each request is judged by them, and counted in sliding windows by key."""

from operators.slo._operator import slo
from operators.slo._snapshot import LatencyQuantiles, SloFigures, SloSnapshot
from operators.slo._tally import OTHER
from operators.slo._windows import SloWindows

__all__ = ("OTHER", "LatencyQuantiles", "SloFigures", "SloSnapshot", "SloWindows", "slo")
