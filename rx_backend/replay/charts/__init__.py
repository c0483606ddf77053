"""
Charts of latency: a notebook shows one at the end of a cell, ``print`` its figures as a table.

Drawing needs matplotlib, the extra ``plot``; the text needs nothing.
"""

from rx_backend.replay.charts.slo_charts import HistoryChart, LoadChart, OutcomeChart
from rx_backend.replay.charts.token_chart import TokenChart

__all__ = ("HistoryChart", "LoadChart", "OutcomeChart", "TokenChart")
