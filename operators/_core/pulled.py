"""An operator that pulls for itself: an asynchronous generator between two parts of a pipeline."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any

from operators._core.fusion import FusedRun
from operators._core.release import Segment, hold, let_go
from operators._core.stage import Emission

__all__ = ("PulledSegment",)


class PulledSegment(Segment):
    """
    An asynchronous generator over the part before it, pulled by the part behind it.

    Args:
        source: The part before it; closed when the generator is through.
        generate: Makes the generator from *source*.
    """

    __slots__ = ("_error", "_generator", "_is_through", "_out", "_source")

    def __init__(
        self, source: FusedRun[Any], generate: Callable[[FusedRun[Any]], AsyncGenerator[Any]]
    ) -> None:
        self._source = source
        self._out: list[Any] = []
        self._is_through = False
        self._error: Exception | None = None
        self._generator = generate(source)
        hold(self._generator)

    @property
    def ended(self) -> bool:
        return self._is_through and not self._out and self._error is None

    async def __anext__(self) -> Any:
        while not self._out:
            if self._is_through:
                error, self._error = self._error, None
                raise StopAsyncIteration if error is None else error
            item = await self._generator.__anext__()
            if type(item) is not Emission:
                return item
            self._out += item.items
            self._is_through, self._error = item.ends, item.error
        return self._out.pop(0)

    async def aclose(self) -> None:
        """Close the generator, then its source."""
        try:
            await self._generator.aclose()
        finally:
            let_go(self._generator)
            await self._source.aclose()
