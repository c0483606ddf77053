"""Metrics of a test: a meter provider of its own, and what was measured with it."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

__all__ = ("Meters",)

_ALWAYS = {"gen_ai.operation.name": "text_completion", "gen_ai.provider.name": "rx_backend"}


class Meters:
    """
    A meter provider that is not the global one, and its metrics.

    Attributes:
        provider: What to give to the code under test.
    """

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.provider = MeterProvider([self._reader], shutdown_on_exit=False)

    def points(self, name: str) -> list[Any]:
        """Return the data points of a metric; none for one that was never measured."""
        data = self._reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def counts(self, name: str, *labels: str) -> dict[tuple[object, ...], int]:
        """Return what a counter says for each combination of *labels*, or a histogram of its samples."""
        found: dict[tuple[object, ...], int] = {}
        for point in self.points(name):
            key = tuple(point.attributes.get(label) for label in labels)
            assert point.attributes.items() >= _ALWAYS.items()
            found[key] = found.get(key, 0) + (
                point.value if hasattr(point, "value") else point.count
            )
        return {key: count for key, count in found.items() if count}
