"""
Charts of latency, drawn in one style: a notebook shows one at the end of a cell, ``print`` its figures.

Drawing needs matplotlib, the extra ``plot``; the text needs nothing.

- ``TokenChart``: when the tokens of a few streams came.
- ``LoadChart``: TTFT, ITL and goodput against the request rate.
- ``HistoryChart``: open requests and goodput over time.
- ``OutcomeChart``: what became of the requests of several runs.
"""

from rx_backend.replay.charts.history_chart import HistoryChart
from rx_backend.replay.charts.load_chart import LoadChart
from rx_backend.replay.charts.outcome_chart import OutcomeChart
from rx_backend.replay.charts.token_chart import TokenChart

__all__ = ("HistoryChart", "LoadChart", "OutcomeChart", "TokenChart")
