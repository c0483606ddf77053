"""Latency targets: each request is judged by them, and counted in sliding windows by key."""

from operators._slo._operator import slo
from operators._slo._snapshot import LatencyQuantiles, SloFigures, SloSnapshot
from operators._slo._tally import OTHER
from operators._slo._windows import SloWindows

__all__ = ("OTHER", "LatencyQuantiles", "SloFigures", "SloSnapshot", "SloWindows", "slo")
