"""The marble diagrams in the docstrings of the operators are true."""

# An operator that is made without a stream leaves the type of its items open.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pytest
from reactivex import Notification, Observable, abc
from reactivex import operators as ops

import operators
from operators import TokenTimes, authoring
from operators._core.plain import subscribe_in_task
from rx_backend import (
    Annotated,
    Disconnected,
    FinishReason,
    InvalidArgument,
    LLMEngineOutput,
    TraceLink,
    protocols,
)
from rx_backend.protocols import CompletionUsage, convert_output
from rx_backend.testing import MarbleEvent, MarbleMismatch, Marbles, render_marbles
from tests.diagrams import MarbleDiagram, read_diagrams
from tests.spans import Spans
from tests.tokenizer import byte_tokenizer

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

    def timed(self, notification: Notification[Any]) -> MarbleEvent:
        """Return a materialized signal as an event of a line of marbles."""
        value = notification.value if notification.has_value else None
        kind = "next" if notification.has_value else "completed"
        return MarbleEvent(round(self.test.clock()), kind, value)

    def tell_marbles(self, row: str, events: Sequence[MarbleEvent]) -> None:
        """Say that a row of commentary must be the line of these events."""
        self.told[row] = render_marbles(events, self.test.values)

    def observed(self, row: str = "observed") -> Callable[[LLMEngineOutput], None]:
        """Return an observer of chunks, of whose line of marbles *row* tells."""
        line = ""

        def observe(chunk: LLMEngineOutput) -> None:
            nonlocal line
            letter = {1: "a", 2: "b", 3: "c"}[chunk.token_ids[0]]
            line = line.ljust(round(self.test.clock()), " " if line else "-") + letter
            self.told[row] = line

        return observe


def coalesce(scene: Scene) -> Play:
    @authoring.operator
    async def busy(source: authoring.FusedRun[Any]) -> AsyncGenerator[Any]:
        async for item in source:
            yield item
            if not source.ended:
                await asyncio.sleep(5.0)

    def lagging(chunks: AsyncIterator[Any]) -> authoring.FusedRun[Any]:
        return operators.fuse(chunks, [operators.coalesce(), busy()])

    def play(source: Observable[Any]) -> Observable[Any]:
        return Observable(partial(subscribe_in_task, lagging, source))

    return play


def deferred_abort(scene: Scene) -> Play:
    def play(source: Observable[Any], stop: Observable[Any]) -> Observable[Any]:
        return source.pipe(operators.deferred_abort(lambda: scene.tell("abort", "!"), stop=stop))

    return play


def detokenize(scene: Scene) -> Play:
    def tell(chunk: LLMEngineOutput) -> None:
        if chunk.text:
            scene.tell("text", chunk.text)

    def play(source: Observable[Any]) -> Observable[Any]:
        return source.pipe(operators.detokenize(byte_tokenizer()), ops.do_action(tell))

    return play


def enforce_cancellation(scene: Scene) -> Play:
    def play(source: Observable[Any], stop: Observable[Any]) -> Observable[Any]:
        return source.pipe(operators.enforce_cancellation(3, LLMEngineOutput.stop, stop=stop))

    return play


def itl_window(scene: Scene) -> Play:
    def tell(times: TokenTimes) -> None:
        gaps = ", ".join(str(gap_ms) for gap_ms in times.itl_ms())
        scene.tell("gaps", gaps, frame=round(times.times[1]))

    return operators.itl_window(TokenTimes(scene.test.clock), tell)


def map_async(scene: Scene) -> Play:
    async def annotated(chunk: LLMEngineOutput) -> Annotated[LLMEngineOutput]:
        await asyncio.sleep(1.0)
        return Annotated(chunk)

    return operators.map_async(annotated)


def peek_first(scene: Scene) -> Play:
    @authoring.operator
    async def peeked(source: authoring.FusedRun[Any]) -> AsyncGenerator[Any]:
        async for item in await operators.peek_first(source):
            yield item

    return peeked()


def share_replay(scene: Scene) -> Play:
    def play(source: Observable[Any]) -> Observable[Any]:
        shared = source.pipe(operators.share_replay())

        def subscribe(
            observer: abc.ObserverBase[Any], scheduler: abc.SchedulerBase | None = None
        ) -> abc.DisposableBase:
            late = shared.pipe(ops.materialize(), ops.map(scene.timed), ops.to_list())
            loop = asyncio.get_running_loop()
            loop.call_at(4.0, late.subscribe, partial(scene.tell_marbles, "late"))
            return shared.subscribe(observer)

        return Observable(subscribe)

    return play


def slo(scene: Scene) -> Play:
    windows = operators.SloWindows(clock=scene.test.clock)
    good = operators.slo(3000, 2000, windows=windows, key="model")
    told = ops.finally_action(lambda: scene.tell("counted", "good" * windows.snapshot().total.good))

    def play(source: Observable[Any]) -> Observable[Any]:
        return source.pipe(good, told)

    return play


def tap_async(scene: Scene) -> Play:
    observed = scene.observed()

    async def slow(chunk: LLMEngineOutput) -> None:
        observed(chunk)
        await asyncio.sleep(2.0)

    return operators.tap_async(slow)


def usage(scene: Scene) -> Play:
    def tell(cost: CompletionUsage) -> None:
        scene.tell("on_end", f"{cost.prompt_tokens} + {cost.completion_tokens}")

    return operators.usage(3, protocols.usage, on_end=tell)


# How each operator is made; a new one belongs here.
PLAYS: dict[str, Callable[[Scene], Play]] = {
    "abort_gate": lambda _: operators.abort_gate,
    "annotate_errors": lambda _: operators.annotate_errors(Annotated, Annotated.from_error),
    "coalesce": coalesce,
    "deadlines": lambda _: operators.deadlines(idle_s=3),
    "deferred_abort": deferred_abort,
    "detokenize": detokenize,
    "drain_until_first_token": lambda scene: operators.drain_until_first_token(
        lambda: scene.tell("abort", "!"), drains=operators.Drains()
    ),
    "enforce_cancellation": enforce_cancellation,
    "first_token": lambda scene: operators.first_token(scene.observed("called")),
    "heartbeat": lambda _: operators.heartbeat(2, "p"),
    "itl_window": itl_window,
    "limit_tokens": lambda _: operators.limit_tokens(2),
    "map_async": map_async,
    "on_outcome": lambda scene: operators.on_outcome(lambda _: scene.tell("called", "o")),
    "peek_first": peek_first,
    "record_span": lambda scene: operators.record_span(scene.tracer.start_span("engine.generate")),
    "share_replay": share_replay,
    "sliding_itl": lambda scene: operators.sliding_itl(count=10, clock=scene.test.clock),
    "slo": slo,
    "stop_on": lambda _: operators.stop_on([[2, 3]]),
    "stop_on_text": lambda _: operators.stop_on_text("bc"),
    "tap": lambda scene: operators.tap(scene.observed()),
    "tap_async": tap_async,
    "trace_link": lambda _: operators.trace_link(LINK),
    "until_terminal": lambda _: operators.until_terminal(),
    "usage": usage,
    "validate_chunks": lambda _: operators.validate_chunks(
        LLMEngineOutput, convert_output, error=InvalidArgument
    ),
    "validate_contract": lambda _: operators.validate_contract(),
}

# Letters that mean something else in the diagram of one operator.
OWN_LETTERS: dict[str, Mapping[str, Any]] = {
    "abort_gate": {letter: letter for letter in "soc"},
    "annotate_errors": {
        "A": Annotated(token(1)),
        "B": Annotated(token(2)),
        "E": Annotated.from_error(GONE),
    },
    "coalesce": {"M": LLMEngineOutput([2, 3])},
    "detokenize": {
        "q": token(0xC3),
        "r": token(0xA9),
        "Q": LLMEngineOutput([0xC3], text="", tokens=[""]),
        "R": LLMEngineOutput([0xA9], text="é", tokens=["é"]),
    },
    "limit_tokens": {"B": LLMEngineOutput.length().with_tokens([2])},
    "stop_on": {"S": LLMEngineOutput.stop()},
    "stop_on_text": {
        **{letter: LLMEngineOutput(text=letter) for letter in "abc"},
        "S": LLMEngineOutput(finish_reason=FinishReason.STOP, stop_reason="bc"),
    },
    "map_async": {"A": Annotated(token(1)), "B": Annotated(token(2))},
    "trace_link": {"A": stamped},
    "usage": {"U": LLMEngineOutput.stop().with_usage(protocols.usage(3, 2))},
}


def diagrams() -> list[Any]:
    return [
        pytest.param(name, diagram, id=f"{name}-{number}")
        for name in operators.__all__
        for number, diagram in enumerate(read_diagrams(getattr(operators, name).__doc__), 1)
    ]


@pytest.mark.parametrize(("name", "diagram"), diagrams())
def test_the_diagram_is_executed(name: str, diagram: MarbleDiagram) -> None:
    """Playing the inputs gives the result, and the side effects that the rows below it show."""
    scene = Scene()
    scene.test.values = {**LETTERS, **OWN_LETTERS.get(name, {})}
    diagram.play(scene.test, PLAYS[name](scene))
    assert {row: diagram.rows[row] for row in scene.told} == scene.told


def test_every_operator_has_a_diagram() -> None:
    """Every operator that is exported shows what it does."""
    written = {
        name for name in operators.__all__ if hasattr(getattr(operators, name), "__wrapped__")
    }
    assert written - {param.values[0] for param in diagrams()} == set()


def until(source: Observable[Any], other: Observable[Any]) -> Observable[Any]:
    """
    Stop with the other one.

    So::

        source  -a-b-c-|
        other   ----x
        result  -a-b|
        noted   what is below the result is commentary

    and when the other does nothing::

        source  -a-|
        other   ---
        result  -a-|

    Note:
        source: Rows elsewhere, such as this one, are none.
    """
    return source.pipe(ops.take_until(other))


def test_diagrams_are_found_among_prose() -> None:
    """Each block with a result is one; rows above it are played; a false one is a mismatch."""
    first, second = read_diagrams(until.__doc__)
    assert first.inputs == {"source": "-a-b-c-|", "other": "----x"}
    assert first.rows["noted"] == "what is below the result is commentary"
    assert [one.play(Marbles(), until).marbles for one in (first, second)] == ["-a-b|", "-a-|"]
    with pytest.raises(MarbleMismatch):
        MarbleDiagram({**first.rows, "result": "-a-b-c-|"}).play(Marbles(), until)
