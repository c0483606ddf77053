"""Two streams of which one goes on: the first, and a rival that is started when it is slow."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from operators._core.failures import drop_top_frame
from operators._core.failures import redacted_exc_info
from operators._core.fusion import FusedRun
from operators._lazy_timer import LazyTimer
from operators._opened import Opened
from operators._rival import Rival, answers, is_failure

__all__ = ("HedgeOutcome", "Race")


@dataclass(frozen=True, slots=True)
class HedgeOutcome:
    """
    What became of a stream for which a second one was started.

    The one that lost had given no token, so all that was spent on it is its work on the prompt, and
    what it was about to give.

    Attributes:
        winner: Which of the two went on; None where both failed, or the stream was dropped before
            either had answered.
        elapsed_s: When that was known, in seconds from the first pull.
        first_failure: What the first one failed with before the other had answered.
        second_failure: What the second one failed with, likewise.
    """

    winner: Literal["first", "second"] | None
    elapsed_s: float
    first_failure: BaseException | None = None
    second_failure: BaseException | None = None


class Race:
    """
    One stream and its rival, until one of them has answered.

    Attributes:
        timer: Starts the rival.
        rival: The second stream, once it is started.
        winner: Which of the two has answered.
        is_first_over: The first stream has ended, failed or lost.
    """

    __slots__ = (
        "_abort_first",
        "_abort_second",
        "_begun",
        "_failure",
        "_is_pulling",
        "_is_stopped",
        "_is_told",
        "_left_s",
        "_on_first_over",
        "_on_outcome",
        "_second",
        "_source",
        "is_first_over",
        "rival",
        "timer",
        "winner",
    )

    def __init__(
        self,
        source: FusedRun[Any],
        after_s: float,
        second: Callable[[], Opened],
        *,
        abort_first: Callable[[], None],
        abort_second: Callable[[], None],
        on_first_over: Callable[[], None],
        is_stopped: Callable[[], bool],
        on_outcome: Callable[[HedgeOutcome], None] | None,
    ) -> None:
        self._source = source
        self._left_s = after_s
        self._second = second
        self._abort_first = abort_first
        self._abort_second = abort_second
        self._on_first_over = on_first_over
        self._is_stopped = is_stopped
        self._on_outcome = on_outcome
        self._is_pulling = False
        self._is_told = False
        self._failure: Exception | None = None
        self.timer = LazyTimer(self._start)
        self._begun = self.timer.clock()
        self.rival: Rival | None = None
        self.winner: Literal["first", "second"] | None = None
        self.is_first_over = False

    async def pull_first(self) -> Any:
        """Pull the first stream once; gives what came."""
        if self.winner is not None:
            # It lost while nobody pulled.
            self._source.close()
            self.is_first_over = True
            return None
        item = None
        self._is_pulling = True
        now = self.timer.clock()
        if self.rival is None:
            self.timer.set(now + self._left_s)
        try:
            item = await anext(self._source)
        except StopAsyncIteration:
            self.is_first_over = True
        except Exception as error:
            if self.rival is None:
                raise
            drop_top_frame(error)
            self._failure = error
            self.is_first_over = True
        finally:
            self._is_pulling = False
            self._left_s -= self.timer.clock() - now
            self.timer.due = math.inf
        if self.rival is not None and self.winner is None and is_failure(item):
            self._source.close()
            self.is_first_over = True
        if self.is_first_over:
            if self.rival is not None and self.winner is None:
                _call(self._on_first_over)
        elif answers(item):
            self._first_answered()
        return item

    def _start(self) -> None:
        if self.winner is None and not self.is_first_over and not self._is_stopped():
            self.rival = Rival(self._second, self._second_answered)

    def _first_answered(self) -> None:
        self.timer.cancel()
        self.winner = "first"
        if self.rival is not None:
            if not self.rival.is_out:
                _call(self._abort_second)
            self.rival.close()
            self._tell()

    def _second_answered(self) -> None:
        self.winner = "second"
        if not self.is_first_over:
            _call(self._abort_first)
            if self._is_pulling:
                self._source.close()
        self._tell()

    def raise_failure(self) -> None:
        """Raise what the first stream failed with, if it did."""
        failure, self._failure = self._failure, None
        if failure is not None:
            self._tell(failure)
            try:
                raise failure
            finally:
                # This frame is in its traceback: holding it here would be a cycle.
                del failure

    def _tell(self, failure: BaseException | None = None) -> None:
        if self._on_outcome is None or self.rival is None or self._is_told:
            return
        self._is_told = True
        outcome = HedgeOutcome(
            self.winner,
            round(self.timer.clock() - self._begun, 6),
            self._failure if failure is None else failure,
            self.rival.failure,
        )
        _call(self._on_outcome, outcome)

    async def aclose(self) -> None:
        """Close what is still open of both."""
        self.timer.cancel()
        self._tell()
        self._failure = None
        if self.rival is not None:
            await self.rival.aclose()


def _call(function: Callable[..., object], *args: object) -> None:
    """Call what must not disturb the race."""
    try:
        function(*args)
    except Exception as error:
        _log.error("%r failed", function, exc_info=redacted_exc_info(error))


_log = logging.getLogger(__name__)
