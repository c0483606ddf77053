"""The stages of a run one by one: how each is ended and closed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Protocol, cast

from operators._core.failures import (
    add_operator_note,
    as_failure,
    drop_top_frame,
    redacted_exc_info,
)
from operators._core.stage import Completed, Hooks, Stage

if TYPE_CHECKING:
    from operators._core.stage import AnyStage

__all__ = ("StageFactory", "Stages", "generator_of")


class StageFactory(Protocol):
    """What a chain makes a stage from."""

    @property
    def name(self) -> str:
        """Shown in errors."""
        ...

    @property
    def takes(self) -> str:
        """What items it is made for."""
        ...

    def start(self, scope: Any) -> Stage[Any, Any] | Hooks[Any, Any] | None:
        """Make a new stage; None where there is nothing to do."""
        ...


class Stages:
    """The stages of one run."""

    __slots__ = ("_factories", "_scope", "_stages")

    _factories: Sequence[StageFactory]
    _scope: Any
    _stages: list[AnyStage]

    def _throw(self, here: int, signal: BaseException) -> tuple[BaseException | None, Any]:
        """Raise *signal* at a stage's yield; return the exception that propagates, or last items."""
        stage = self._stages[here]
        if stage is None:
            return signal, None
        if isinstance(stage, Hooks):
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
                raised = self._failure(raised, here)
            return raised, None
        self._close(here, here + 1)
        return None, words

    def _end_callbacks(
        self, here: int, callbacks: Hooks[Any, Any], signal: BaseException
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
            return self._failure(raised, here), None
        return signal, None

    def _close(self, place: int, end: int, failure: Exception | None = None) -> None:
        """Close the stages from *place* to *end*: a drop, unless it is for their own *failure*."""
        interrupt: BaseException | None = None
        for here in range(place, end):
            stage = self._stages[here]
            if stage is None:
                continue
            try:
                if isinstance(stage, Hooks):
                    self._stages[here] = None
                    if stage.on_end is not None:
                        stage.on_end(failure, failure is None)
                elif not stage.gi_running:
                    stage.close()
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

    def _failure(self, error: BaseException, place: int) -> BaseException:
        """Return the failure of the operator that raised *error*, which is named on it and to the scope."""
        name = self._factories[place].name
        failure = as_failure(error, f"the operator {name}")
        add_operator_note(failure, name, self._scope)
        return failure


def generator_of(factory: StageFactory, stage: object) -> GeneratorType[Any, Any, Any]:
    if not isinstance(stage, GeneratorType):
        raise TypeError(
            f"{factory.name}: expected the body of an operator to be a generator, "
            f"got {type(stage).__name__}"
        )
    return cast("GeneratorType[Any, Any, Any]", stage)


_log = logging.getLogger(__name__)
