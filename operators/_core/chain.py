"""The rules between the operators of one run: what ends, failures and drops mean."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Protocol, cast

from operators._core.failures import without_message
from operators._core.stage import (
    Awaited,
    Completed,
    Condition,
    Emission,
    Hooks,
    SetupFailed,
    Stage,
    Step,
)

if TYPE_CHECKING:
    from operators._core.stage import AnyStage

__all__ = ("READY", "Chain", "Starter", "blame", "leave_frame")

READY = object()
"""What a loop yields for an item that is in its chain's slot."""


class Starter(Protocol):
    """What a chain makes a stage from."""

    @property
    def name(self) -> str:
        """Shown in errors."""
        ...

    def start(self) -> Stage[Any, Any] | Hooks[Any, Any] | Awaited[Any, Any]:
        """Make a new stage."""
        ...


class Chain:
    """
    The stages of one run of neighbouring operators, and the rules between them.

    This is the one place that knows what ends, failures and drops mean; the fused loop and the
    plain Observable only decide how items come in and go out. Signals of one chain are serial: the
    callers guarantee it, and no lock is taken.

    Args:
        starters: The operators; an asynchronous one ends the chain, and those behind it are left.

    Attributes:
        link: The asynchronous step that stands behind the chain.
        steps: One callable per stage for its next item; None where the stage stepped aside.
        conditions: For each stage which items visit it; None for all.
        reshaped: One of the two changed since the flag was last cleared.
        out: Items that came out by any other way than one for one, in order.
        ended: Nothing comes in any more: completed, failed or closed.
        error: What the stream failed with, once it has ended.
        item: The slot in which the fused loop hands over an item.
    """

    __slots__ = (
        "_is_last",
        "_names",
        "_stages",
        "conditions",
        "ended",
        "error",
        "item",
        "link",
        "out",
        "reshaped",
        "steps",
    )

    def __init__(self, starters: Iterable[Starter]) -> None:
        names: list[str] = []
        stages: list[AnyStage] = []
        steps: list[Step | None] = []
        conditions: list[Condition | None] = []
        self._names, self._stages = names, stages
        self._is_last = False
        self.steps, self.conditions = steps, conditions
        self.reshaped = False
        self.out: list[Any] = []
        self.error: BaseException | None = None
        self.ended = False
        self.item: Any = None
        self.link: Awaited[Any, Any] | None = None
        returned: tuple[int, Any] | None = None
        try:
            for place, starter in enumerate(starters):
                names.append(starter.name)
                body = starter.start()
                if isinstance(body, Hooks):
                    stages.append(body)
                    steps.append(body.step)
                    conditions.append(body.condition)
                    continue
                if isinstance(body, Awaited):
                    self.link = body
                    break
                stage = _generator(starter, body)
                stages.append(stage)
                steps.append(stage.send)
                conditions.append(None)
                try:
                    first = next(stage)
                except StopIteration as stop:
                    first = stop.value
                    if type(first) is not Emission or not first.steps_aside:
                        returned = place, first
                        continue
                if type(first) is Emission:
                    self._visit(place, first)
        except BaseException as error:
            if names:
                blame(error, names[-1])
            self.steps.clear()
            self.abandon(error)
            raise
        if returned is not None:
            place, value = returned
            self._close(0, place)
            self._returned(place, value)

    def push(self, item: Any, place: int = 0) -> None:
        """Send one item through the stages from *place* on; results go to ``out``."""
        steps = self.steps
        for here in range(place, len(steps)):
            step = steps[here]
            condition = self.conditions[here]
            try:
                if step is None or (condition is not None and not condition.holds(item)):
                    continue
                if condition is not None and condition.expression.once:
                    self.steps[here] = None
                    self.reshaped = True
                item = step(item)
            except BaseException as error:
                leave_frame(error)
                self.interrupted(error, here)
                return
            if type(item) is Emission:
                self.emitted(here, item)
                return
        self.out.append(item)

    def push_last(self, item: Any, place: int = 0) -> None:
        """Send the stream's last item through the stages from *place* on, and complete them."""
        self._is_last = True
        self.push(item, place)
        self.complete(place)

    @property
    def link_name(self) -> str:
        """The name of the asynchronous step behind the chain."""
        return self._names[-1]

    def emitted(self, place: int, emission: Emission) -> None:
        """Take what the stage at *place* yielded by :func:`emit`, :func:`bypass`, :func:`apply`."""
        if emission.ends:
            self._end_before(place)
            self._close(place, place + 1)
            self._returned(place, emission)
            return
        self._visit(place, emission)
        for item in emission.items:
            if self.ended:
                return
            self.push(item, place + 1)

    def interrupted(self, error: BaseException, place: int) -> None:
        """
        Take an exception that came out of a step: the stage's end, or its failure.

        Args:
            error: ``StopIteration`` for a stage that returned.
            place: The stage.
        """
        stage = self._stages[place]
        has_returned = (
            isinstance(error, StopIteration)
            and isinstance(stage, GeneratorType)
            and stage.gi_frame is None
            and getattr(self.steps[place], "__self__", None) is stage
        )
        value = error.value if isinstance(error, StopIteration) else None
        if has_returned and type(value) is Emission and value.steps_aside:
            self.emitted(place, value)
            return
        self._end_before(place)
        if has_returned:
            self._returned(place, value)
            return
        blame(error, self._names[place])
        self._close(place, place + 1)
        self.fail(error, place + 1)

    def _end_before(self, place: int) -> None:
        """A stage ended the stream: end the ones before it."""
        if self._is_last:
            # The source was through already, so for them this is no drop.
            for here in range(place):
                self._throw(here, Completed())
        else:
            self._close(0, place)

    def leave(self, place: int) -> None:
        """No more items visit the stage at *place*; the loop knows already."""
        self.steps[place] = None

    def complete(self, place: int = 0) -> None:
        """The source is through: tell the stages from *place* on, in order."""
        if self.ended:
            return
        for here in range(place, len(self._stages)):
            stage = self._stages[here]
            if stage is None or (isinstance(stage, Hooks) and stage.on_end is None):
                continue
            raised, words = self._throw(here, Completed())
            if raised is None:
                self._returned(here, words)
                return
            if type(raised) is not Completed:
                self.fail(raised, here + 1)
                return
        self.ended = True

    def fail(self, error: BaseException, place: int = 0) -> None:
        """The source failed: tell the stages from *place* on; one of them may turn it into items."""
        if self.ended:
            return
        for here in range(place, len(self._stages)):
            if not isinstance(error, Exception):
                break
            raised, words = self._throw(here, error)
            if raised is None:
                self._returned(here, words)
                return
            error = raised
        else:
            self.ended = True
            self.error = error
            return
        # Cancellation and the like are a drop, never an item (row S6).
        self.close()
        self.error = error

    def close(self) -> None:
        """
        Drop: every stage that still lives is closed, in order. Idempotent.

        A stage that is running at this moment (it dropped its own stream) stays open; the caller
        closes again when the step is through.
        """
        self.ended = True
        self._close(0, len(self._stages))

    def abandon(self, error: BaseException) -> None:
        """The set-up of a later stage raised *error*: every stage is told, whatever it says to it."""
        if isinstance(error, Exception):
            failure = SetupFailed(repr(error))
            for here in range(len(self._stages)):
                self._throw(here, failure)
        self.close()
        self.error = error

    def drop(self) -> None:
        """Close, and forget what has not been handed out."""
        self.out.clear()
        self.close()

    def _visit(self, place: int, emission: Emission) -> None:
        """Take what an emission says of who visits the stage from now on."""
        if emission.steps_aside:
            self.steps[place] = emission.step
            self.conditions[place] = None
            self.reshaped = True
        elif emission.condition is not None:
            self.conditions[place] = emission.condition
            self.reshaped = True

    def _throw(self, here: int, signal: BaseException) -> tuple[BaseException | None, Any]:
        """Raise *signal* at a stage's yield; gives the exception that goes on, or last words."""
        stage = self._stages[here]
        if stage is None:
            return signal, None
        if isinstance(stage, Hooks):
            return self._end_hooks(here, stage, signal)
        if stage.gi_frame is None:
            return signal, None
        traceback = signal.__traceback__
        try:
            words = stage.throw(signal)
        except StopIteration as stop:
            return None, stop.value
        except BaseException as raised:
            if raised is signal:
                raised.__traceback__ = traceback
            else:
                leave_frame(raised)
                blame(raised, self._names[here])
            return raised, None
        self._close(here, here + 1)
        return None, words

    def _end_hooks(
        self, here: int, hooks: Hooks[Any, Any], signal: BaseException
    ) -> tuple[BaseException | None, Any]:
        self._stages[here] = None
        failure = signal if isinstance(signal, Exception) else None
        try:
            if hooks.on_end is not None:
                hooks.on_end(failure, False)
            if failure is not None and hooks.on_error is not None:
                return None, hooks.on_error(failure)
        except BaseException as raised:
            leave_frame(raised)
            blame(raised, self._names[here])
            return raised, None
        return signal, None

    def _returned(self, place: int, value: Any) -> None:
        """The stage at *place* ended the stream, with last items or without."""
        items = value.items if type(value) is Emission else () if value is None else (value,)
        error = value.error if type(value) is Emission else None
        for item in items[:-1] if error is None else items:
            if not self.ended:
                self.push(item, place + 1)
        if self.ended:
            return
        if error is not None:
            self.fail(error, place + 1)
        elif items:
            self.push_last(items[-1], place + 1)
        else:
            self.complete(place + 1)

    def _close(self, place: int, end: int) -> None:
        for here in range(place, end):
            stage = self._stages[here]
            if stage is None:
                continue
            try:
                if isinstance(stage, Hooks):
                    self._stages[here] = None
                    if stage.on_end is not None:
                        stage.on_end(None, True)
                elif not stage.gi_running:
                    stage.close()
            except Exception as error:
                # A failing release must not keep the other stages from theirs.
                _log.error(
                    "operator %s failed while it was closed",
                    self._names[here],
                    exc_info=without_message(error),
                )


def leave_frame(error: BaseException) -> None:
    """
    Take the frame that caught *error* out of its traceback.

    That frame, or one that called it, holds the error: a cycle that only the garbage collector
    would free, for every stream.
    """
    if error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next


def blame(error: BaseException, name: str) -> None:
    """Note on *error* which operator raised it: a traceback shows it, and texts stay as they are."""
    if isinstance(error, Exception):
        note = f"raised by the operator {name}"
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)


def _generator(starter: Starter, stage: object) -> GeneratorType[Any, Any, Any]:
    if not isinstance(stage, GeneratorType):
        raise TypeError(
            f"{starter.name}: an operator's body is a generator, or gives Hooks or Awaited; "
            f"got {type(stage).__name__}"
        )
    return cast("GeneratorType[Any, Any, Any]", stage)


_log = logging.getLogger(__name__)
