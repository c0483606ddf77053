"""OpenTelemetry metrics of resumable streams."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple
from weakref import WeakSet

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from rx_backend.telemetry.instruments import SharedInstruments

if TYPE_CHECKING:
    from rx_backend.resumable._table import StreamTable

__all__ = ("ResumableMetrics", "ResumableStats")

_PREFIX: Final = "rx_backend.resumable"


class ResumableStats(NamedTuple):
    """
    The numbers of what one ``ResumableStreams`` holds.

    Attributes:
        running: Streams whose answer has not ended.
        kept: Streams whose answer has ended.
        readers: Readers of both.
        held_bytes: Bytes of the items of both.
        waiting: Streams whose engine waits for a reader, by the limiting option.
    """

    running: int
    kept: int
    readers: int
    held_bytes: int
    waiting: Mapping[str, int]


class ResumableMetrics(SharedInstruments):
    """
    The instruments of one meter provider, which all ``ResumableStreams`` share. Thread-safe.

    Args:
        meter: Makes the instruments.
    """

    def __init__(self, meter: Meter) -> None:
        self._tables: WeakSet[StreamTable] = WeakSet()
        self._limit_hits = meter.create_counter(
            f"{_PREFIX}.limit_hits", "{time}", "How often a limit took effect, by option and effect"
        )
        self._requests = meter.create_counter(
            f"{_PREFIX}.resumes", "{request}", "Requests for the rest of a stream, by outcome"
        )
        create = meter.create_observable_up_down_counter
        create(f"{_PREFIX}.streams", [self._streams], "{stream}", "Streams that are held")
        create(f"{_PREFIX}.readers", [self._readers], "{reader}", "Readers of streams")
        create(f"{_PREFIX}.waiting", [self._waiting], "{stream}", "Streams that wait for a reader")
        create(f"{_PREFIX}.held", [self._bytes], "By", "Bytes of the items that are held")

    def observe(self, table: StreamTable) -> None:
        """Observe *table* from now on, while it exists. Idempotent."""
        self._tables.add(table)

    def count_limit_hit(self, option: str, effect: str) -> None:
        """Count that the limit *option* took effect."""
        self._limit_hits.add(1, {"rx_backend.limit": option, "rx_backend.effect": effect})

    def count_resume(self, outcome: str) -> None:
        """Count a request for the rest of a stream."""
        self._requests.add(1, {"rx_backend.outcome": outcome})

    def _held(self) -> list[ResumableStats]:
        return [table.figures() for table in list(self._tables)]

    def _streams(self, _: CallbackOptions) -> Iterator[Observation]:
        held = self._held()
        yield Observation(sum(each.running for each in held), {"rx_backend.state": "running"})
        yield Observation(sum(each.kept for each in held), {"rx_backend.state": "kept"})

    def _readers(self, _: CallbackOptions) -> Iterable[Observation]:
        return [Observation(sum(each.readers for each in self._held()))]

    def _waiting(self, _: CallbackOptions) -> Iterator[Observation]:
        held = self._held()
        for option in ("max_ahead", "max_bytes"):
            count = sum(each.waiting.get(option, 0) for each in held)
            yield Observation(count, {"rx_backend.limit": option})

    def _bytes(self, _: CallbackOptions) -> Iterable[Observation]:
        return [Observation(sum(each.held_bytes for each in self._held()))]
