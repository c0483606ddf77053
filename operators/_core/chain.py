"""The rules between the operators of one run: what ends, failures and drops mean."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Protocol, cast

from operators._core.failures import (
    add_operator_note,
    drop_top_frame,
    nothing_due,
    redacted_exc_info,
)
from operators._core.stage import (
    Callbacks,
    Completed,
    Condition,
    Stage,
    StageResult,
    Step,
)

if TYPE_CHECKING:
    from operators._core.stage import AnyStage

__all__ = ("Chain", "StageFactory")


class StageFactory(Protocol):
    """What a chain makes a stage from."""

    @property
    def name(self) -> str:
        """Shown in errors."""
        ...

    def start(self, scope: Any) -> Stage[Any, Any] | Callbacks[Any, Any] | None:
        """Make a new stage; None where there is nothing to do."""
        ...


class Chain:
    """
    The stages of one run of neighbouring operators, and the rules between them.

    This is the one place that knows what ends, failures and drops mean; the fused loop and the
    plain Observable only decide how items come in and go out. Signals of one chain are serial: the
    callers guarantee it, and no lock is taken.

    Args:
        factories: The operators.
        scope: Handed to operators that ask for the scope of the stream.

    Attributes:
        steps: One callable per stage for its next item; None where no item visits.
        conditions: For each stage which items visit it; None for all.
        reshaped: Whether one of the two changed since the flag was last cleared.
        out: Items that came out by any other way than one for one, in order.
        has_ended: Whether nothing comes in any more: completed, failed or closed.
        error: What the stream failed with, once it has ended.
        ended_by: The operator that ended the stream before its source did; None where none did.
    """

    __slots__ = (
        "_factories",
        "_is_last",
        "_kept_by",
        "_scope",
        "_stages",
        "conditions",
        "ended_by",
        "error",
        "has_ended",
        "out",
        "reshaped",
        "steps",
    )

    def __init__(self, factories: Sequence[StageFactory], scope: Any = None) -> None:
        self._factories = factories
        self._scope = scope
        self._stages: list[AnyStage] = []
        self._is_last = False
        # The operator that handed out nothing for the last item.
        self._kept_by: str | None = None
        self.steps: list[Step | None] = []
        self.conditions: list[Condition | None] = []
        self.reshaped = False
        self.out: list[Any] = []
        self.error: BaseException | None = None
        self.has_ended = False
        self.ended_by: str | None = None
        self._start()

    def _start(self) -> None:
        """Start the stages, in order."""
        stages, steps, conditions = self._stages, self.steps, self.conditions
        returned: tuple[int, Any] | None = None
        place = 0
        try:
            for place, factory in enumerate(self._factories):
                body = factory.start(self._scope)
                if body is None or type(body) is Callbacks:
                    stages.append(body)
                    steps.append(None if body is None else body.step)
                    conditions.append(None if body is None else body.condition)
                    continue
                stage = _generator(factory, body)
                stages.append(stage)
                steps.append(stage.send)
                conditions.append(None)
                try:
                    first = next(stage)
                except StopIteration as stop:
                    first = stop.value
                    if type(first) is not StageResult or not first.detaches:
                        returned = place, first
                        continue
                if type(first) is StageResult:
                    self._apply(place, first)
        except BaseException as error:
            self._blame(error, place)
            self.steps.clear()
            self.close_stages()
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
                drop_top_frame(error)
                self.stage_raised(error, here)
                return
            if item is None or type(item) is StageResult:
                self.emitted(here, item)
                return
        self.out.append(item)

    def push_last(self, item: Any, place: int = 0, ended_by: str | None = None) -> None:
        """Send the stream's last item through the stages from *place* on, and complete them."""
        self._is_last = True
        self.push(item, place)
        self.complete(place, self._kept_by or ended_by)

    def emitted(self, place: int, result: StageResult | None) -> None:
        """Take what the stage at *place* returned for an item, where that is no item."""
        if result is None:
            self.stage_raised(nothing_due(), place)
            return
        if result.ends:
            self._end_before(place)
            self._close(place, place + 1)
            self._returned(place, result)
            return
        self._apply(place, result)
        if self._is_last and not result.items:
            self._kept_by = self._factories[place].name
        for item in result.items:
            if self.has_ended:
                return
            self.push(item, place + 1)

    def stage_raised(self, error: BaseException, place: int) -> None:
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
        )
        value = error.value if isinstance(error, StopIteration) else None
        if has_returned and type(value) is StageResult and value.detaches:
            self.emitted(place, value)
            return
        self._end_before(place)
        if has_returned:
            self._returned(place, value)
            return
        self._blame(error, place)
        self._close(place, place + 1)
        self.fail(error, place + 1)

    def _end_before(self, place: int) -> None:
        """End the stages before *place*, whose operator ended the stream."""
        if self._is_last:
            # The source had completed already, so for them this is no drop.
            for here in range(place):
                self._throw(here, Completed())
        else:
            self._close(0, place)

    def leave(self, place: int) -> None:
        """Note that no more items visit the stage at *place*; the loop knows already."""
        self.steps[place] = None

    def complete(self, place: int = 0, ended_by: str | None = None) -> None:
        """Complete the stages from *place* on, in order."""
        if self.has_ended:
            return
        signal = None
        for here in range(place, len(self._stages)):
            stage = self._stages[here]
            if stage is None:
                continue
            if type(stage) is Callbacks and stage.on_end is None and stage.on_complete is None:
                continue
            if signal is None:
                signal = Completed(ended_by)
            raised, words = self._throw(here, signal)
            if raised is None:
                self._returned(here, words, ended_by)
                return
            if type(raised) is not Completed:
                self.fail(raised, here + 1)
                return
        self.has_ended = True
        self.ended_by = ended_by

    def fail(self, error: BaseException, place: int = 0) -> None:
        """Fail the stages from *place* on; one of them may turn the failure into items."""
        if self.has_ended:
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
            self.has_ended = True
            self.error = error
            return
        # Cancellation and the like are a drop, never an item (row S6).
        self.close_stages()
        self.error = error

    def close_stages(self) -> None:
        """
        Close every stage that still lives, in order: a drop. Idempotent.

        A stage that is running at this moment (it dropped its own stream) stays open; the caller
        closes again when the step has ended.
        """
        self.has_ended = True
        self._close(0, len(self._stages))

    def _apply(self, place: int, result: StageResult) -> None:
        """Apply what a result says of who visits the stage from now on."""
        if result.detaches:
            self.steps[place] = self.conditions[place] = None
            self.reshaped = True
        elif result.condition is not None:
            self.conditions[place] = result.condition
            self.reshaped = True

    def _throw(self, here: int, signal: BaseException) -> tuple[BaseException | None, Any]:
        """Raise *signal* at a stage's yield; return the exception that goes on, or last items."""
        stage = self._stages[here]
        if stage is None:
            return signal, None
        if type(stage) is Callbacks:
            return self._end_callbacks(here, stage, signal)
        assert isinstance(stage, GeneratorType)  # noqa: S101 - for the type checker
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
                drop_top_frame(raised)
                self._blame(raised, here)
            return raised, None
        self._close(here, here + 1)
        return None, words

    def _end_callbacks(
        self, here: int, callbacks: Callbacks[Any, Any], signal: BaseException
    ) -> tuple[BaseException | None, Any]:
        self._stages[here] = None
        failure = signal if isinstance(signal, Exception) else None
        try:
            if callbacks.on_end is not None:
                callbacks.on_end(failure, False)
            if failure is not None and callbacks.on_error is not None:
                return None, callbacks.on_error(failure)
            if callbacks.on_complete is not None and type(signal) is Completed:
                words = callbacks.on_complete(signal.ended_by)
                if words is not None:
                    return None, words
        except BaseException as raised:
            drop_top_frame(raised)
            self._blame(raised, here)
            return raised, None
        return signal, None

    def _returned(self, place: int, value: Any, ended_by: str | None = None) -> None:
        """End the stages behind *place*, whose stage ended the stream with these last items."""
        items = value.items if type(value) is StageResult else () if value is None else (value,)
        error = value.error if type(value) is StageResult else None
        if not self._is_last and ended_by is None:
            ended_by = self._factories[place].name
        for item in items[:-1] if error is None else items:
            if not self.has_ended:
                self.push(item, place + 1)
        if self.has_ended:
            return
        if error is not None:
            self.fail(error, place + 1)
        elif items:
            self.push_last(items[-1], place + 1, ended_by)
        else:
            self.complete(place + 1, ended_by)

    def _close(self, place: int, end: int) -> None:
        interrupt: BaseException | None = None
        for here in range(place, end):
            stage = self._stages[here]
            if stage is None:
                continue
            try:
                if type(stage) is Callbacks:
                    self._stages[here] = None
                    if stage.on_end is not None:
                        stage.on_end(None, True)
                else:
                    generator = cast("GeneratorType[Any, Any, Any]", stage)
                    if not generator.gi_running:
                        generator.close()
            except Exception as error:
                # A failing release must not keep the other stages from theirs.
                _log.error(
                    "operator %s failed while it was closed",
                    self._factories[here].name,
                    exc_info=redacted_exc_info(error),
                )
            except BaseException as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def _blame(self, error: BaseException, place: int) -> None:
        """Say which operator raised *error*: in a note on it, and to the scope."""
        add_operator_note(error, self._factories[place].name, self._scope)


def _generator(factory: StageFactory, stage: object) -> GeneratorType[Any, Any, Any]:
    if not isinstance(stage, GeneratorType):
        raise TypeError(
            f"{factory.name}: expected the body of an operator to be a generator, "
            f"got {type(stage).__name__}"
        )
    return cast("GeneratorType[Any, Any, Any]", stage)


_log = logging.getLogger(__name__)
