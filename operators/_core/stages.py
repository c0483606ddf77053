"""The individual stages of a run, and how each is ended and closed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import GeneratorType
from typing import TYPE_CHECKING, Any, TypeAlias

from operators._core.failures import (
    add_operator_note,
    as_failure,
    drop_top_frame,
    redacted_exc_info,
)
from operators._core.stage import Completed, Hooks

if TYPE_CHECKING:
    from operators._core.operator import Operator

__all__ = ("GeneratorBody", "StageFactory", "Stages")


StageFactory: TypeAlias = "Operator[Any, Any]"
"""Makes a stage for a chain."""


class GeneratorBody(Hooks[Any, Any]):
    """An operator's body that is a generator."""

    __slots__ = ("generator", "step")

    handles_end = True

    def __init__(self, generator: GeneratorType[Any, Any, Any]) -> None:
        self.generator = generator
        self.step = generator.send

    @property
    def has_returned(self) -> bool:
        """Whether the generator has finished."""
        return self.generator.gi_frame is None


class Stages:
    """
    The stages of one run.

    Attributes:
        bodies: The body of each stage; None if it has none, or has ended.
    """

    __slots__ = ("_ending", "_factories", "_scope", "bodies")

    _factories: Sequence[StageFactory]
    _scope: Any
    # The indexes of stages that handle the end, in order.
    _ending: list[int]
    bodies: list[Hooks[Any, Any] | None]

    def _end(self, here: int, signal: Completed | Exception) -> tuple[BaseException | None, Any]:
        """End a stage with *signal*; return the exception that propagates, or last items."""
        body = self.bodies[here]
        if body is None:
            return signal, None
        if isinstance(body, GeneratorBody):
            return self._throw(here, body.generator, signal)
        self.bodies[here] = None
        try:
            if body.on_end is not None:
                body.on_end(signal if isinstance(signal, Exception) else None, False)
            if isinstance(signal, Completed):
                if body.on_complete is not None:
                    last = body.on_complete(signal.ended_by)
                    if last is not None:
                        return None, last
            elif body.on_error is not None:
                return None, body.on_error(signal)
        except BaseException as raised:
            drop_top_frame(raised)
            return self._failure(raised, here), None
        return signal, None

    def _throw(
        self, here: int, generator: GeneratorType[Any, Any, Any], signal: BaseException
    ) -> tuple[BaseException | None, Any]:
        """Raise *signal* at the generator's ``yield``."""
        if generator.gi_frame is None:
            return signal, None
        traceback = signal.__traceback__
        try:
            last = generator.throw(signal)
        except StopIteration as stop:
            return None, stop.value
        except BaseException as raised:
            if raised is signal:
                raised.__traceback__ = traceback
            else:
                drop_top_frame(raised)
                raised = self._failure(raised, here)
            return raised, None
        self._close(here, here + 1)
        return None, last

    def _close(self, place: int, end: int, failure: Exception | None = None) -> None:
        """Close the stages from *place* to *end*: a drop, unless due to their own *failure*."""
        interrupt: BaseException | None = None
        for here in self._ending:
            if here >= end:
                break
            body = self.bodies[here]
            if body is None or here < place:
                continue
            try:
                if not isinstance(body, GeneratorBody):
                    self.bodies[here] = None
                    if body.on_end is not None:
                        body.on_end(failure, failure is None)
                elif not body.generator.gi_running:
                    body.generator.close()
            except Exception as error:
                # A failing release must not prevent those of the other stages.
                _log.error(
                    "operator %s failed while being closed",
                    self._factories[here].name,
                    exc_info=redacted_exc_info(error),
                )
            except BaseException as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def _failure(self, error: BaseException, place: int) -> BaseException:
        """Return *error* as the failure of its operator, which a note and the scope name."""
        name = self._factories[place].name
        failure = as_failure(error, f"the operator {name}")
        add_operator_note(failure, name, self._scope)
        return failure


_log = logging.getLogger(__name__)
