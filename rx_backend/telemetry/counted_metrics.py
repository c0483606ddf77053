"""
An exporter of metrics that counts what is lost.

Importing this module imports the SDK's exporters: ``configure()`` does so.
"""

from __future__ import annotations

import threading
from typing import Any

from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData

from rx_backend.telemetry.losses import CUT_OFF, Losses, export_failure

__all__ = ("CountedMetricExporter",)


class CountedMetricExporter(MetricExporter):
    """
    An exporter of metrics that counts the points of exports that fail.

    Args:
        exporter: Where metrics go.
        losses: Where losses are counted.
    """

    def __init__(self, exporter: MetricExporter, losses: Losses) -> None:
        # What the exporter wants of its reader, which looks there for it.
        wants = vars(exporter)
        super().__init__(
            preferred_temporality=wants.get("_preferred_temporality"),
            preferred_aggregation=wants.get("_preferred_aggregation"),
        )
        self._exporter: Any = exporter
        self._losses = losses
        self._is_shut_down = False
        self._lock = threading.RLock()
        self._under_way = 0
        self._idle = threading.Event()
        self._idle.set()

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        """Export the points."""
        with self._lock:
            self._under_way = points = _points(metrics_data)
            self._idle.clear()
        reason = export_failure(
            lambda: (
                self._exporter.export(metrics_data, timeout_millis=timeout_millis, **kwargs)
                is MetricExportResult.SUCCESS
            ),
            lambda: self._is_shut_down,
        )
        if reason is not None and self._take_under_way():
            self._losses.add("metrics", points, reason)
        self._take_under_way()
        self._idle.set()
        return MetricExportResult.SUCCESS if reason is None else MetricExportResult.FAILURE

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Nothing waits here."""
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """End the exporter, once, whatever it is doing."""
        if not self._is_shut_down:
            self._is_shut_down = True
            # The SDK's reader says it so.
            left = kwargs.get("timeout", timeout_millis)
            self._exporter.shutdown(timeout_millis=max(0.0, left))

    def settle(self, within_s: float) -> None:
        """Wait for what was cut off to fail, no longer than that; else it is lost too."""
        self._idle.wait(max(0.0, within_s))
        points = self._take_under_way()
        if points:
            self._losses.add("metrics", points, CUT_OFF)

    def _take_under_way(self) -> int:
        """Give the points of the export under way to the one who asks first."""
        with self._lock:
            points, self._under_way = self._under_way, 0
        return points


def _points(data: MetricsData) -> int:
    return sum(
        len(metric.data.data_points)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    )
