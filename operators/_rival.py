"""A second stream that is pulled beside the first, until one of them has answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, cast

from operators._core.failures import drop_top_frame
from operators._core.fusion import FusedRun
from operators._opened import Opened, opened
from operators._raw_chunk import has_content, is_terminal

__all__ = ("Rival", "answers", "is_failure")


def answers(item: Any) -> bool:
    """Whether an item decides a race: it has content, or is the terminal."""
    return has_content(item) or is_terminal(item)


def is_failure(item: Any) -> bool:
    """Whether an item is the terminal of a stream that failed, in whichever form."""
    if isinstance(item, Mapping):
        reason = cast("Mapping[str, object]", item).get("finish_reason")
    else:
        reason = getattr(item, "finish_reason", None)
    if isinstance(reason, str):
        return reason.startswith("error")
    if isinstance(reason, Mapping):
        return "error" in reason
    return bool(getattr(reason, "is_error", False))


class Rival:
    """
    The second stream of a race, in a task that pulls it up to its answer.

    Args:
        second: Gives the stream.
        on_answer: Called when its answer is there, with nothing else between the two.

    Attributes:
        items: What came up to the answer, which is the last of them; then to be handed out.
        run: The stream, once it is open.
        failure: What it failed with.
        is_out: It failed, or ended without an answer, or was dropped.
    """

    __slots__ = ("_on_answer", "_second", "_settled", "_task", "failure", "is_out", "items", "run")

    def __init__(self, second: Callable[[], Opened], on_answer: Callable[[], None]) -> None:
        self._second = second
        self._on_answer = on_answer
        self._settled: asyncio.Future[None] | None = None
        self.items: list[Any] = []
        self.run: FusedRun[Any] | None = None
        self.failure: BaseException | None = None
        self.is_out = False
        self._task = asyncio.get_running_loop().create_task(self._pull())
        _pulling.add(self._task)
        self._task.add_done_callback(_pulling.discard)

    async def settled(self) -> bool:
        """Wait for its answer; False when there will be none."""
        if not self._task.done():
            await asyncio.wait([self._task])
        return not self.is_out

    def close(self) -> None:
        """Drop it without waiting; a step that is under way ends in the task that began it."""
        if self._task.done():
            if self.run is not None:
                self.run.close()
            return
        self.is_out = True
        if self.run is None:
            self._task.cancel()
        else:
            self.run.close()

    async def aclose(self) -> None:
        """Drop it, and wait until it is released."""
        self.close()
        if not self._task.done():
            await asyncio.wait([self._task])
        if self.run is not None:
            await self.run.aclose()
        self.failure = None

    async def _pull(self) -> None:
        has_answered = False
        try:
            run = self.run = await opened(self._second(), "hedge: second")
            async for item in run:
                self.items.append(item)
                if answers(item):
                    has_answered = not is_failure(item)
                    break
        except (Exception, asyncio.CancelledError) as error:
            drop_top_frame(error)
            self.failure = error
        finally:
            self.is_out = self.is_out or not has_answered
        if not self.is_out:
            self._on_answer()
        elif self.run is not None:
            await self.run.aclose()


_pulling: set[asyncio.Task[None]] = set()
