"""The rules between the operators of one run: what ends, failures and drops mean."""

from __future__ import annotations

from collections.abc import Sequence
from types import GeneratorType
from typing import Any

from operators._core.failures import add_operator_note, drop_top_frame, no_chunk, nothing_due
from operators._core.stage import Completed, Condition, Hooks, StageResult, Step
from operators._core.stages import StageFactory, Stages, generator_of

__all__ = ("Chain",)


class Chain(Stages):
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
        "_is_last",
        "_kept_by",
        "conditions",
        "ended_by",
        "error",
        "has_ended",
        "out",
        "reshaped",
        "steps",
    )

    def __init__(self, factories: Sequence[StageFactory], scope: Any = None) -> None:
        count = len(factories)
        self._factories = factories
        self._scope = scope
        self._stages = [None] * count
        self._is_last = False
        # The operator that handed out nothing for the last item.
        self._kept_by: str | None = None
        self.steps: list[Step | None] = [None] * count
        self.conditions: list[Condition | None] = [None] * count
        self.reshaped = False
        self.out: list[Any] = []
        self.error: BaseException | None = None
        self.has_ended = False
        self.ended_by: str | None = None
        self._start()

    def _start(self) -> None:
        """Start the stages, in order."""
        returned: tuple[int, Any] | None = None
        place = 0
        try:
            for place, factory in enumerate(self._factories):
                body = factory.start(self._scope)
                if body is None:
                    continue
                if isinstance(body, Hooks):
                    self.steps[place] = body.step
                    self.conditions[place] = body.condition
                    if body.has_hooks:
                        self._stages[place] = body
                    continue
                stage = self._stages[place] = generator_of(factory, body)
                self.steps[place] = stage.send
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
            add_operator_note(error, self._factories[place].name, self._scope)
            self.close_stages()
            raise
        if returned is not None:
            place, value = returned
            self._close(0, place)
            self._returned(place, value)

    def push(self, item: Any, place: int = 0) -> None:
        """Send one item through the stages from *place* on; results go to ``out``."""
        steps, conditions = self.steps, self.conditions
        for here in range(place, len(steps)):
            step = steps[here]
            if step is None:
                continue
            condition = conditions[here]
            try:
                if condition is not None and not condition.holds(item):
                    continue
                if condition is not None and condition.expression.once:
                    steps[here] = None
                    self.reshaped = True
                item = step(item)
            except BaseException as error:
                drop_top_frame(error)
                self.stage_raised(error, here, item, place)
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

    def stage_raised(
        self, error: BaseException, place: int, item: Any = None, since: int = 0
    ) -> None:
        """
        Take an exception that came out of a step: the stage's end, or its failure.

        Args:
            error: ``StopIteration`` for a stage that returned.
            place: The stage.
            item: What it was called with.
            since: The first of the stages that the item came through.
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
        error = self._failure_of_step(error, place, item, since)
        self._close(place, place + 1, error if isinstance(error, Exception) else None)
        self.fail(error, place + 1)

    def _failure_of_step(
        self, error: BaseException, place: int, item: Any, since: int
    ) -> BaseException:
        """
        Return the failure of a stage whose step raised *error* for *item*.

        In a request's pipeline, where an operator in front handed out no chunk, that is another
        error, and the operator in front is named (row O5).
        """
        if self._scope is not None and self._factories[place].takes == "chunks":
            wrong, name = no_chunk(error, item), self._made_by(item, place, since)
            if wrong is not None and name is not None:
                add_operator_note(wrong, name, self._scope)
                return wrong
        return self._failure(error, place)

    def _made_by(self, item: object, place: int, since: int) -> str | None:
        """Return the nearest operator before *place* that may have made *item*; None if unknown."""
        for here in range(place - 1, since - 1, -1):
            if self.steps[here] is not None and isinstance(self._stages[here], GeneratorType):
                return self._factories[here].name
        return self._factories[since - 1].name if since else None

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
            if isinstance(stage, Hooks) and stage.on_end is None and stage.on_complete is None:
                continue
            if signal is None:
                signal = Completed(ended_by)
            raised, words = self._throw(here, signal)
            if raised is None:
                self._returned(here, words, ended_by, at_end=True)
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

    def _returned(
        self, place: int, value: Any, ended_by: str | None = None, *, at_end: bool = False
    ) -> None:
        """End the stages behind *place*, whose stage ended the stream with these last items."""
        items = value.items if type(value) is StageResult else () if value is None else (value,)
        error = value.error if type(value) is StageResult else None
        if not (self._is_last or at_end) and ended_by is None:
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
