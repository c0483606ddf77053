"""The marble diagrams in the docstrings of the operators are true."""

# An operator that is made without a stream leaves the type of its items open.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from reactivex import Observable

import operators
from operators import TokenTimes
from rx_backend import Annotated, Disconnected, InvalidArgument, LLMEngineOutput, TraceLink
from rx_backend.protocols import convert_output
from rx_backend.testing import MarbleDiagram, Marbles, read_diagrams
from tests.spans import Spans

Play = Callable[..., Observable[Any]]

LINK = TraceLink("a" * 32, "b" * 16)
GONE = Disconnected("peer gone")


class AnyFigures:
    """Equal to whatever figures come: the diagram says when they come, not what they are."""

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, operators.LatencyFigures)


stamped = LLMEngineOutput.token(1)
stamped.worker_trace_link = LINK


def token(number: int) -> LLMEngineOutput:
    return LLMEngineOutput.token(number)


LETTERS: Mapping[str, Any] = {
    "a": token(1),
    "b": token(2),
    "c": token(3),
    "h": LLMEngineOutput(),
    "T": LLMEngineOutput.stop(),
    "m": {"token_ids": [4]},
    "C": token(4),
    "S": AnyFigures(),
}


class Scene:
    """What an operator is played with: virtual time, a tracer, and a place for side effects."""

    def __init__(self) -> None:
        self.test = Marbles(LETTERS, error=GONE)
        self.tracer = Spans().tracer
        self.told: dict[str, str] = {}

    def tell(self, row: str, what: str, frame: int | None = None) -> None:
        """Say what a row of commentary must read: *what*, at a frame, which is now by default."""
        assert row not in self.told, f"{row} came twice"
        self.told[row] = "-" * (round(self.test.clock()) if frame is None else frame) + what


def abort_gate(scene: Scene) -> Play:
    return operators.abort_gate


def annotate_errors(scene: Scene) -> Play:
    return operators.annotate_errors(Annotated, Annotated.from_error)


def deferred_abort(scene: Scene) -> Play:
    def play(source: Observable[Any], stop: Observable[Any]) -> Observable[Any]:
        return source.pipe(operators.deferred_abort(lambda: scene.tell("abort", "!"), stop=stop))

    return play


def first_token(scene: Scene) -> Play:
    letters = {1: "a", 2: "b"}
    return operators.first_token(lambda chunk: scene.tell("called", letters[chunk.token_ids[0]]))


def itl_window(scene: Scene) -> Play:
    def tell(times: TokenTimes) -> None:
        gaps = ", ".join(str(gap_ms) for gap_ms in times.itl_ms())
        scene.tell("gaps", gaps, frame=round(times.times[1]))

    return operators.itl_window(TokenTimes(scene.test.clock), tell)


def record_span(scene: Scene) -> Play:
    return operators.record_span(scene.tracer.start_span("engine.generate"))


def sliding_itl(scene: Scene) -> Play:
    return operators.sliding_itl(count=10, clock=scene.test.clock)


def trace_link(scene: Scene) -> Play:
    return operators.trace_link(LINK)


def until_terminal(scene: Scene) -> Play:
    return operators.until_terminal()


def validate_chunks(scene: Scene) -> Play:
    return operators.validate_chunks(LLMEngineOutput, convert_output, error=InvalidArgument)


def validate_contract(scene: Scene) -> Play:
    return operators.validate_contract()


# How each operator is made; a new one belongs here.
PLAYS: dict[str, Callable[[Scene], Play]] = {
    play.__name__: play
    for play in (
        abort_gate,
        annotate_errors,
        deferred_abort,
        first_token,
        itl_window,
        record_span,
        sliding_itl,
        trace_link,
        until_terminal,
        validate_chunks,
        validate_contract,
    )
}

# Letters that mean something else in the diagram of one operator.
OWN_LETTERS: dict[str, Mapping[str, Any]] = {
    "abort_gate": dict.fromkeys("soc", True),
    "annotate_errors": {
        "A": Annotated(token(1)),
        "B": Annotated(token(2)),
        "E": Annotated.from_error(GONE),
    },
    "trace_link": {"A": stamped},
}


def diagrams() -> list[Any]:
    return [
        pytest.param(name, diagram, id=f"{name}-{number}")
        for name in operators.__all__
        for number, diagram in enumerate(read_diagrams(getattr(operators, name).__doc__), 1)
    ]


@pytest.mark.parametrize(("name", "diagram"), diagrams())
def test_the_diagram_is_true(name: str, diagram: MarbleDiagram) -> None:
    """Playing the inputs gives the result, and the side effects that the rows below it show."""
    scene = Scene()
    scene.test.values = {**LETTERS, **OWN_LETTERS.get(name, {})}
    diagram.play(scene.test, PLAYS[name](scene))
    assert {row: diagram.rows[row] for row in scene.told} == scene.told


def test_every_operator_has_a_diagram() -> None:
    """Whatever is written with ``@operator`` and exported shows what it does."""
    written = {
        name for name in operators.__all__ if hasattr(getattr(operators, name), "__wrapped__")
    }
    assert written - {param.values[0] for param in diagrams()} == set()
