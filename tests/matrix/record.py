"""What is noted of one request, and what the rows say of it."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

__all__ = ("Record",)


@dataclass(eq=False)
class Record:
    """
    What happened to one request. It refers weakly to all that the library made.

    Attributes:
        opened: How often the engine's answer was begun; ``closed`` how often it was left.
        cancels: How many cancellations the engine's waits saw; ``cuts`` those in its clean-up.
        is_closed: The clean-up began by a ``GeneratorExit``, and before the engine was through.
        is_over: The engine has ended its answer by itself: a terminal, an error, or a return.
        has_content: The engine has sent a token before the drop, or told of one.
        is_stuck: The engine waits for what never comes, or for a signal.
        is_dropped: The consumer has dropped the stream; ``is_drop_over`` a few turns later.
        task_cancels: How often the consumer's task was cancelled; ``closes`` how often it left
            otherwise.
        is_signalled: The context was stopped or killed at all; ``is_signalled_live`` before the
            drop; ``must_abort`` while the answer was surely live and its abort due (A2).
        is_exact: Nothing but consumer and engine can end the answer.
        is_lost: It is dropped when the last reference is gone, which may be any time later; an
            operator may pull until then.
    """

    engine: str
    consumer: str
    mode: str
    index: int
    opened: int = 0
    closed: int = 0
    cancels: int = 0
    cuts: int = 0
    is_closed: bool = False
    is_over: bool = False
    is_stuck: bool = False
    has_content: bool = False
    is_asked: bool = False
    has_stream: bool = False
    is_dropped: bool = False
    is_drop_over: bool = False
    task_cancels: int = 0
    closes: int = 0
    is_signalled: bool = False
    is_signalled_live: bool = False
    must_abort: bool = False
    is_exact: bool = True
    is_lost: bool = False
    aborts: int = 0
    terminals: int = 0
    errors: int = 0
    is_clean: bool = False
    last: str = ""
    progress: int = 0
    next_token: int = 0
    spans: dict[int, int] = field(default_factory=dict[int, int])
    problems: list[str] = field(default_factory=list[str])
    watched: list[tuple[str, weakref.ref[object]]] = field(
        default_factory=list[tuple[str, "weakref.ref[object]"]]
    )

    def __str__(self) -> str:
        return f"{self.engine} x {self.consumer} ({self.mode}, index {self.index})"

    def blame(self, problem: str) -> None:
        """Note a broken rule, once."""
        if problem not in self.problems:
            self.problems.append(problem)

    def watch(self, name: str, thing: object) -> None:
        """Have *thing* looked for when all is over."""
        self.watched.append((name, weakref.ref(thing)))

    @property
    def is_live(self) -> bool:
        """Whether there is a stream that surely neither ended nor was dropped."""
        return self.has_stream and not (
            self.is_dropped or self.is_over or self.closed or self.last in {"terminal", "error"}
        )

    @property
    def is_released(self) -> bool:
        """Whether all that is counted here is given back."""
        return (
            self.opened == self.closed
            and all(ends == 1 for ends in self.spans.values())
            and all(thing() is None for _, thing in self.watched)
        )

    def check(self) -> None:
        """Compare with the rows, when everything had its time."""
        if self.opened != self.closed:
            self.blame(f"S7: the engine was opened {self.opened} times, closed {self.closed}")
        if self.is_asked and not self.spans:
            self.blame("P1: no span")
        for ends in self.spans.values():
            if ends != 1:
                self.blame(f"P7: a span ended {ends} times")
        if alive := [name for name, thing in self.watched if thing() is not None]:
            self.blame(f"S7: still alive: {', '.join(alive)}")
        self._check_aborts()
        # What ends the answer may meet an engine that cleans up already; nothing else may.
        blows = self.is_closed + self.cancels + self.cuts
        # Of those that an operator makes by itself, such as a deadline, there is one at most.
        if self.cuts and blows > max(1, self.task_cancels + self.closes + (not self.is_exact)):
            self.blame("S7: the engine was cancelled in its clean-up")

    def _check_aborts(self) -> None:
        if self.aborts > 1:
            self.blame(f"A2: {self.aborts} aborts")
        if not self.aborts:
            if self.must_abort:
                self.blame("A2: stopped while live, and no abort")
            return
        if self.is_clean:
            self.blame("A1: an abort after a clean completion")
        if not self.is_exact:
            return
        if not self.is_signalled:
            self.blame("A2: an abort without a signal")
        elif self.is_lost:
            return
        elif not self.is_signalled_live:
            self.blame("A5: an abort for a signal that came after the drop or the end")
        elif self.mode == "decode" and not self.has_content:
            self.blame("A5: an abort before the first token")
