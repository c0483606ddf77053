"""An operator that pulls for itself: an asynchronous generator between two parts of a pipeline."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

from operators._core.links import Links
from operators._core.release import Segment, hold, let_go
from operators._core.stage import Emission

if TYPE_CHECKING:
    from operators._core.fusion import FusedRun

__all__ = ("PulledSegment",)


class PulledSegment(Segment):
    """
    An asynchronous generator over the part before it, pulled by the run behind it.

    The run takes the generator's items as they come, and hands an emission back to :meth:`take`.

    Args:
        source: The part before it; closed when the generator is through.
        generate: Makes the generator from *source*.

    Attributes:
        is_aside: The generator has stepped aside; what comes is the source's.
    """

    __slots__ = ("_generator", "_source", "is_aside")

    def __init__(
        self, source: FusedRun[Any], generate: Callable[[FusedRun[Any]], AsyncGenerator[Any]]
    ) -> None:
        self._source = source
        self.is_aside = False
        self._generator = generate(source)
        hold(self._generator)

    @property
    def ended(self) -> bool:
        return self.is_aside and self._source.ended

    @property
    def pull(self) -> Callable[[], Any]:
        """The function that gives the next item, or emission, to await."""
        return self._source.__anext__ if self.is_aside else self._generator.__anext__

    def __anext__(self) -> Any:
        return self.pull()

    def take(self, emission: Emission, chain: Links) -> None:
        """Send on what the generator yielded by ``emit``, ``last``, ``failing`` or ``bypass``."""
        if emission.steps_aside:
            self.is_aside = True
            chain.reshaped = True
        *items, final = emission.items or (None,)
        for item in items:
            if not chain.ended:
                chain.push(item)
        if chain.ended:
            return
        is_last = (emission.ends and emission.error is None) or self.ended
        if emission.items and is_last:
            chain.push_last(final)
        elif emission.items:
            chain.push(final)
        elif is_last:
            chain.complete()
        if emission.error is not None:
            chain.fail(emission.error)

    async def aclose(self) -> None:
        """Close the generator, then its source."""
        try:
            await self._generator.aclose()
        finally:
            let_go(self._generator)
            await self._source.aclose()
