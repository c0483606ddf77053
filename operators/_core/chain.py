"""The rules between the operators of one run for ends, failures and drops."""

from __future__ import annotations

from collections.abc import Sequence
from types import GeneratorType
from typing import Any, cast

from operators._core.failures import add_operator_note, drop_top_frame, none_handed_out, wrong_item
from operators._core.stage import Completed, Condition, Hooks, StageResult, Visit
from operators._core.stages import GeneratorBody, StageFactory, Stages

__all__ = ("Chain",)


class Chain(Stages):
    """
    The stages of one run of adjacent operators, and the rules between them.

    Only this class handles ends, failures and drops; the fused loop and the plain Observable only
    decide how items come in and go out. Signals of one chain are serial: callers guarantee it, and
    no lock is taken.

    Args:
        factories: The operators.
        scope: Passed to operators that take the scope of the stream.

    Attributes:
        visits: For each stage, which items visit it.
        reshaped: Whether the visits changed since the flag was last cleared.
        out: Items that did not come out one for one, in order.
        has_ended: Whether no more items come in: completed, failed or closed.
        error: What the stream failed with, once it has ended.
        ended_by: The operator that ended the stream before its source did, if any.
    """

    __slots__ = (
        "_is_last",
        "_last_by",
        "_last_from",
        "ended_by",
        "error",
        "has_ended",
        "out",
        "reshaped",
        "visits",
    )

    def __init__(self, factories: Sequence[StageFactory], scope: Any = None) -> None:
        self._factories = factories
        self._scope = scope
        self._is_last = False
        # The stage from which the last item continued, and the operator that made it the last one,
        # or that handed out nothing for it.
        self._last_from = 0
        self._last_by: str | None = None
        self._ending = []
        self.bodies = [None] * len(factories)
        self.visits: list[Visit] = [None] * len(factories)
        self.reshaped = False
        self.out: list[Any] = []
        self.error: BaseException | None = None
        self.has_ended = False
        self.ended_by: str | None = None
        self._start()

    def _start(self) -> None:
        """Start the stages, in order."""
        scope, bodies, visits, ending = self._scope, self.bodies, self.visits, self._ending
        returned: tuple[int, Any] | None = None
        place = 0
        try:
            for place, factory in enumerate(self._factories):
                body: Any = factory.start(scope)
                if body is None:
                    continue
                if isinstance(body, Hooks):
                    bodies[place] = body
                    visits[place] = body.visit
                    if body.handles_end:
                        ending.append(place)
                    continue
                bodies[place] = generator = _body_of(factory, body)
                ending.append(place)
                try:
                    first = next(generator.generator)
                except StopIteration as stop:
                    first = stop.value
                    if type(first) is not StageResult or not first.detaches:
                        returned = place, first
                        continue
                if type(first) is not StageResult or not first.detaches:
                    visits[place] = True
        except BaseException as error:
            add_operator_note(error, self._factories[place].name, scope)
            self.close_stages()
            raise
        if returned is not None:
            place, value = returned
            self._close(0, place)
            self._finish_with(place, value)

    def push(self, item: Any, place: int = 0) -> None:
        """Send one item through the stages from *place* on; results go to ``out``."""
        bodies, visits = self.bodies, self.visits
        is_last = False
        for here in range(place, len(visits)):
            visit = visits[here]
            if visit is None:
                continue
            body: Any = bodies[here]
            try:
                if type(visit) is Condition:
                    if not visit.holds(item, *body.values):
                        continue
                    if visit.once:
                        visits[here] = None
                        self.reshaped = True
                item = body.step(item)
            except BaseException as error:
                drop_top_frame(error)
                self.stage_raised(error, here, item, place)
                break
            if item is None or type(item) is StageResult:
                item = self.stage_returned(here, item)
                if item is None:
                    break
                is_last = True
        else:
            self.out.append(item)
        if is_last:
            self.complete_last()

    def send_last(self, place: int = 0, by: str | None = None) -> None:
        """
        Record that the stream's last item continues from *place*.

        *by* is the operator that ended the stream with it, None if that was its source. Once it has
        passed, :meth:`complete_last` ends the stages from there on.
        """
        self._is_last = True
        self._last_from = place
        self._last_by = by or self._last_by

    def complete_last(self) -> None:
        """Complete the stages that the last item has passed."""
        self.complete(self._last_from, self._last_by)

    def stage_returned(self, place: int, result: StageResult | None) -> Any:
        """
        Handle what the stage at *place* returned for an item, if that is not an item.

        Returns:
            The stream's last item, if the stage ended the stream with a single one, to continue
            with the next stage; otherwise None.
        """
        if result is None:
            self.stage_raised(none_handed_out(), place)
            return None
        if result.ends:
            self._end_before(place)
            self._close(place, place + 1)
            if len(result.items) == 1 and result.error is None:
                self.send_last(place + 1, None if self._is_last else self._factories[place].name)
                return result.items[0]
            # Items before the last one may change which items visit later stages.
            self._finish_with(place, result)
            return None
        if result.detaches:
            self.visits[place] = None
            self.reshaped = True
        if self._is_last and not result.items:
            self._last_by = self._factories[place].name
        for item in result.items:
            if self.has_ended:
                break
            self.push(item, place + 1)
        return None

    def stage_raised(
        self, error: BaseException, place: int, item: Any = None, since: int = 0
    ) -> None:
        """
        Handle an exception raised by a step: the stage's end, or its failure.

        Args:
            error: ``StopIteration`` for a stage that returned.
            place: The stage.
            item: The item it was called with.
            since: The first stage that the item passed.
        """
        body = self.bodies[place]
        has_returned = (
            isinstance(error, StopIteration)
            and isinstance(body, GeneratorBody)
            and body.has_returned
        )
        value = error.value if isinstance(error, StopIteration) else None
        if has_returned and type(value) is StageResult and value.detaches:
            self.stage_returned(place, value)
            return
        self._end_before(place)
        if has_returned:
            self._finish_with(place, value)
            return
        error = self._failure_of_step(error, place, item, since)
        self._close(place, place + 1, error if isinstance(error, Exception) else None)
        self.fail(error, place + 1)

    def _failure_of_step(
        self, error: BaseException, place: int, item: Any, since: int
    ) -> BaseException:
        """
        Return the failure of a stage whose step raised *error* for *item*.

        In a request's pipeline, if an earlier operator handed out a non-chunk, that is the error,
        and the earlier operator is named (row O5).
        """
        if self._scope is not None and self._factories[place].takes == "chunks":
            wrong, name = wrong_item(error, item), self._made_by(item, place, since)
            if wrong is not None and name is not None:
                add_operator_note(wrong, name, self._scope)
                return wrong
        return self._failure(error, place)

    def _made_by(self, item: object, place: int, since: int) -> str | None:
        """Return the nearest operator before *place* that may have made *item*; None if unknown."""
        for here in range(place - 1, since - 1, -1):
            if self.visits[here] is not None and isinstance(self.bodies[here], GeneratorBody):
                return self._factories[here].name
        return self._factories[since - 1].name if since else None

    def _end_before(self, place: int) -> None:
        """End the stages before *place*, whose operator ended the stream."""
        if self._is_last:
            # The source had already completed, so for them this is not a drop.
            for here in range(place):
                self._end(here, Completed())
        else:
            self._close(0, place)

    def complete(self, place: int = 0, ended_by: str | None = None) -> None:
        """Complete the stages from *place* on, in order."""
        self._end_from(place, Completed(ended_by))

    def fail(self, error: BaseException, place: int = 0) -> None:
        """Fail the stages from *place* on; one of them may turn the failure into items."""
        self._end_from(place, error)

    def _end_from(self, place: int, signal: BaseException) -> None:
        if self.has_ended:
            return
        for here in self._ending:
            if here < place:
                continue
            if not isinstance(signal, Exception | Completed):
                # Cancellation and the like are a drop, never an item (row S6).
                self.close_stages()
                break
            raised, last = self._end(here, signal)
            if raised is None:
                self._finish_with(here, last, signal)
                return
            signal = raised
        self.has_ended = True
        if isinstance(signal, Completed):
            self.ended_by = signal.ended_by
        else:
            self.error = signal

    def close_stages(self) -> None:
        """
        Close every stage that has not ended, in order: a drop. Idempotent.

        A stage that is running at this moment (it dropped its own stream) stays open; the caller
        closes again when the step has ended.
        """
        self.has_ended = True
        self._close(0, len(self.bodies))

    def _finish_with(
        self, place: int, value: Any, signal: Completed | Exception | None = None
    ) -> None:
        """End the stages after *place*, whose stage returned its last items, for *signal* if any."""
        if type(value) is not StageResult:
            value = StageResult(() if value is None else (value,))
        items, error = value.items, value.error
        ended_by = None
        if isinstance(signal, Completed):
            ended_by = signal.ended_by
        elif not self._is_last:
            ended_by = self._factories[place].name
        for item in items[:-1] if error is None else items:
            if not self.has_ended:
                self.push(item, place + 1)
        if self.has_ended:
            return
        if error is not None:
            self.fail(error, place + 1)
        elif items:
            self.send_last(place + 1, ended_by)
            self.push(items[-1], place + 1)
            self.complete_last()
        else:
            self.complete(place + 1, ended_by)


def _body_of(factory: StageFactory, made: object) -> GeneratorBody:
    """Return the body for a generator made by the factory."""
    if not isinstance(made, GeneratorType):
        raise TypeError(
            f"{factory.name}: expected the operator's function to return a generator, "
            f"got {type(made).__name__}"
        )
    return GeneratorBody(cast("GeneratorType[Any, Any, Any]", made))
