"""The stages of a run while it is pulled: cancellations and drops."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

from operators._core.chain import Chain
from operators._core.failures import (
    add_operator_note,
    as_failure,
    drop_top_frame,
    redacted_exc_info,
)
from operators._core.segment import Segment
from operators._core.stages import StageFactory

__all__ = ("PulledChain",)


class PulledChain(Chain):
    """
    The stages of a run, and the state of a pull that the loop reports to them.

    The loop refers to this and not to the run, so that an abandoned run is collected at once.

    Args:
        source: The source that the run pulls.
        operators: The operators.
        scope: As for `Chain`.

    Attributes:
        source: The source that the run pulls.
        item: The slot in which the loop passes an item to the run.
        dropped: Whether the run was dropped before its end.
        puller: The task that waits in a pull.
        baseline: How many cancellations of *puller* were pending when it began to wait.
        own_cancels: How many the run has added since, to end the pull: none or one.
        is_interrupted: Whether a cancellation is passing through the pull.
        is_disturbed: Whether it was dropped or is interrupted; then the loop checks `is_over`.
        pump: A task of ours that may pull; its cancellation is not a consumer's.
    """

    __slots__ = (
        "baseline",
        "dropped",
        "is_disturbed",
        "is_interrupted",
        "item",
        "own_cancels",
        "puller",
        "pump",
        "source",
    )

    def __init__(
        self, source: AsyncIterator[Any], operators: Sequence[StageFactory], scope: Any
    ) -> None:
        self.source = source
        self.item: Any = None
        self.dropped = False
        self.puller: asyncio.Task[Any] | None = None
        self.baseline = 0
        self.own_cancels = 0
        self.is_interrupted = False
        self.is_disturbed = False
        self.pump: asyncio.Task[None] | None = None
        super().__init__(operators, scope)

    def complete(self, place: int = 0, ended_by: str | None = None) -> None:
        """Complete the stages from *place* on, in order."""
        if self.is_disturbed and self.is_over():
            return
        if ended_by is None and isinstance(self.source, Segment):
            ended_by = self.source.ended_by
        super().complete(place, ended_by)

    def made_by(self, item: object) -> str | None:
        """Return the operator that handed out *item*; None unless it is in the slot."""
        return self._made_by(item, len(self.bodies), 0) if self.item is item else None

    def _made_by(self, item: object, place: int, since: int) -> str | None:
        name = super()._made_by(item, place, since)
        return self.source.made_by(item) if not name and isinstance(self.source, Segment) else name

    def is_cancelled(self) -> bool:
        """Return whether the consumer was cancelled, and not just something within the engine."""
        if not self.is_interrupted or (self.pump is not None and self.puller is self.pump):
            return False
        if self.puller is None:
            return not self.dropped
        return self.puller.cancelling() > self.baseline + self.own_cancels

    def is_over(self) -> bool:
        """Return whether the run was dropped; drop it if the consumer was cancelled meanwhile."""
        if not self.dropped and self.is_cancelled():
            self.drop()
        return self.dropped

    def fail_from_source(self, error: BaseException) -> None:
        """Fail the stages with the source's exception; its own cancellation is a failure (S6)."""
        if _forgets_to_uncancel(error) and self.is_cancelled() and self.puller is not None:
            # A failing task group has cancelled its parent, and does not always uncancel it.
            self.puller.uncancel()
        if self.is_over():
            if isinstance(error, Exception):
                _log.error("a dropped source failed", exc_info=redacted_exc_info(error))
            return
        error = as_failure(error, "the source")
        drop_top_frame(error)
        # If the pulling task was cancelled, as at the loop's shutdown, no operator has failed.
        is_pump = self.pump is not None and self.puller is self.pump
        if isinstance(self.source, Segment) and not (is_pump and self.is_interrupted):
            name = self.source.raised_by(error)
            if name is not None:
                add_operator_note(error, name, self._scope)
        self.fail(error)

    def interrupt(self, *, interrupted: bool) -> None:
        """Notify the stages that a cancellation passes through the pull, or did not drop it."""
        if interrupted == self.is_interrupted:
            return
        self.is_interrupted = interrupted
        self.is_disturbed = interrupted or self.dropped
        for body in self.bodies:
            if body is not None and body.on_interrupt is not None:
                body.on_interrupt(interrupted)

    def drop(self) -> None:
        """Close these and all earlier stages, and discard items not handed out."""
        self.dropped = self.is_disturbed = True
        self.out.clear()
        self.error = None
        self.close_stages()
        if isinstance(self.source, Segment):
            self.source.drop()


def _forgets_to_uncancel(error: BaseException) -> bool:
    return sys.version_info < (3, 13) and isinstance(error, BaseExceptionGroup)


_log = logging.getLogger(__name__)
