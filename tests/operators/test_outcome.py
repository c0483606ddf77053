"""`operators._outcome` and `on_outcome`: what is recorded is what the consumer was handed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import reactivex
from hypothesis import given
from hypothesis import strategies as st
from reactivex.subject import Subject

from operators import (
    AbortStep,
    Outcome,
    TokenTimes,
    coalesce,
    deferred_abort,
    itl_window,
    limit_tokens,
    on_outcome,
    stop_on_text,
)
from operators.assembly import HandedOut, OutcomeTracker, error_type_of
from operators.authoring import AnyOperator, Completed, Stage, complete_with, operator
from rx_backend import (
    Annotated,
    Disconnected,
    EngineAdapter,
    FinishReason,
    LLMEngineOutput,
    Pipeline,
    PreprocessedRequest,
    RequestContext,
    RequestScope,
    StreamIncomplete,
    standard_pipeline,
)
from rx_backend.engine import EngineConfig, LLMEngine
from tests.engines import virtual
from tests.operators._help import Life, handshake, terminal, token
from tests.spans import Spans, rows_of

STOP, LENGTH, CANCELLED = FinishReason.STOP, FinishReason.LENGTH, FinishReason.CANCELLED
ERROR = FinishReason.error("boom")
GONE = Disconnected("peer gone")


# The record alone: any items, any end.

REASONS = st.sampled_from([None, None, STOP, LENGTH, CANCELLED, ERROR])
CHUNKS = st.builds(
    LLMEngineOutput,
    st.lists(st.integers(0, 9), max_size=3),
    finish_reason=REASONS,
    index=st.sampled_from([None, 0, 1]),
)


def tracker(answers: int = 1) -> OutcomeTracker:
    return OutcomeTracker(TokenTimes(answers=answers))


def handed_out(items: Iterable[Any]) -> HandedOut:
    handed = HandedOut(FinishReason.parse)
    for item in items:
        assert handed.look(item) is item
    return handed


def first_reasons(chunks: Sequence[LLMEngineOutput]) -> dict[int, FinishReason]:
    """Return the reason of each answer's first terminal."""
    found: dict[int, FinishReason] = {}
    for chunk in chunks:
        if chunk.finish_reason is not None:
            found.setdefault(chunk.index or 0, chunk.finish_reason)
    return found


def worst(reasons: Sequence[FinishReason]) -> FinishReason | None:
    for bad in (ERROR, CANCELLED):
        if bad in reasons:
            return bad
    return reasons[0] if reasons else None


@pytest.mark.rows("O2", "P5", "P6a", "P11")
@given(
    engine=st.lists(CHUNKS, max_size=6),
    handed=st.none() | st.lists(CHUNKS.map(Annotated), max_size=6),
    answers=st.integers(1, 2),
    failure=st.sampled_from([None, GONE]),
    dropped=st.booleans(),
    stopped=st.booleans(),
)
def test_it_is_decided_by_what_was_handed_out(
    engine: list[LLMEngineOutput],
    handed: list[Annotated[LLMEngineOutput]] | None,
    answers: int,
    failure: Exception | None,
    *,
    dropped: bool,
    stopped: bool,
) -> None:
    """The end is that of the items where one was among them, else that of the chunks."""
    record = tracker(answers)
    for chunk in engine:
        if chunk.finish_reason is not None:
            record.times.note_terminal(chunk)
    record.failure = failure
    if handed is not None:
        record.handed_out = handed_out(handed)
    outcome = record.end(dropped=dropped, is_cancelled=stopped)

    seen = [item.data for item in handed or () if item.data is not None]
    reasons = first_reasons(seen)
    if handed is None and dropped:
        # Nothing was taken back: the consumer was handed all of the chunks.
        reasons = first_reasons(engine)
    is_complete = len(reasons) >= answers and (handed is not None or dropped)
    if dropped and not is_complete:
        assert outcome.is_dropped
        assert outcome.is_cancelled
    elif failure is not None and not is_complete:
        assert outcome.error is failure
        assert outcome.is_cancelled is stopped
    else:
        expected = reasons if is_complete else first_reasons(engine)
        assert outcome.error is None
        assert outcome.finish_reason == worst([expected[index] for index in sorted(expected)])
        assert outcome.is_cancelled is stopped
    if handed is not None:
        assert outcome.output_tokens == sum(len(chunk.token_ids) for chunk in seen)
    ways = (outcome.finish_reason is not None, outcome.error is not None, outcome.is_dropped)
    assert sum(ways) == 1


@pytest.mark.rows("P11")
@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        ([STOP, LENGTH], STOP),
        ([LENGTH, STOP], LENGTH),
        ([STOP, CANCELLED], CANCELLED),
        ([CANCELLED, ERROR], ERROR),
        ([ERROR, CANCELLED], ERROR),
    ],
)
def test_several_answers_end_as_the_worst_of_them(
    reasons: list[FinishReason], expected: FinishReason
) -> None:
    """An error, then a cancellation, then the first; all are there, by the index of their answer."""
    record = tracker(len(reasons))
    for index, reason in reversed(list(enumerate(reasons))):
        assert not record.has_ended()
        record.times.note_terminal(LLMEngineOutput(finish_reason=reason, index=index))
    assert record.has_ended()
    outcome = record.end(dropped=False)
    assert outcome.finish_reason == expected
    assert outcome.finish_reasons == tuple(reasons)


@pytest.mark.rows("P6a")
@pytest.mark.parametrize(
    "last",
    [
        Annotated(LLMEngineOutput.stop()),
        Annotated[LLMEngineOutput].from_error(GONE),
        {"data": {"token_ids": [], "finish_reason": "stop"}},
        {"event": "error", "comment": ["gone"]},
    ],
    ids=["terminal", "error-item", "terminal-as-json", "error-item-as-json"],
)
def test_a_drop_behind_the_last_item_is_none(last: Any) -> None:
    """A consumer that was handed the terminal or the error item may walk away."""
    record = tracker()
    # What an error item in its JSON form was made of.
    record.failure = GONE
    record.handed_out = handed_out([Annotated(LLMEngineOutput.token(1)), last])
    assert record.has_ended()
    assert not record.end(dropped=True).is_dropped


@pytest.mark.rows("O2")
def test_items_that_are_no_chunks_say_nothing() -> None:
    """Where only events passed, what the engine gave is what is known."""
    record = tracker()
    record.times.note_terminal(LLMEngineOutput.stop())
    record.handed_out = handed_out([Annotated(comment=["ping"]), "text", None])
    outcome = record.end(dropped=False)
    assert (outcome.finish_reason, outcome.handed_out) == (STOP, None)


@pytest.mark.rows("P7")
def test_observers_are_called_once_and_apart(caplog: pytest.LogCaptureFixture) -> None:
    """One that raises is logged without its message, and keeps the outcome from no other."""
    record, prompt = tracker(), "what was asked"
    seen: list[Outcome] = []

    def broken(_: Outcome) -> None:
        raise LookupError(prompt)

    for observer in (seen.append, broken, seen.append):
        record.subscribe(observer)
    outcome = record.end(dropped=True)
    record.end(dropped=True)
    assert seen == [outcome, outcome]
    assert [entry.getMessage() for entry in caplog.records] == ["an observer of outcomes failed"]
    assert prompt not in caplog.text


@pytest.mark.rows("P7")
def test_a_stop_that_can_not_be_asked_for_is_none(caplog: pytest.LogCaptureFixture) -> None:
    """The observer hears of the end all the same."""

    def refuse() -> bool:
        raise LookupError

    seen: list[Outcome] = []
    chunks = reactivex.of(LLMEngineOutput.stop())
    chunks.pipe(on_outcome(seen.append, is_cancelled=refuse)).subscribe()
    assert [(one.finish_reason, one.is_cancelled) for one in seen] == [(STOP, False)]
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("outcome", "expected", "is_error"),
    [
        (Outcome(STOP, None, is_cancelled=False), None, False),
        (Outcome(ERROR, None, is_cancelled=False), "ErrorTerminal", True),
        (Outcome(None, GONE, is_cancelled=False), "Disconnected", True),
        (Outcome(None, None, is_cancelled=True), "Dropped", False),
    ],
)
def test_the_type_of_an_error(outcome: Outcome, expected: str | None, *, is_error: bool) -> None:
    """One of few texts, none for a good end; a drop is no error."""
    assert error_type_of(outcome) == expected
    assert outcome.is_error is is_error


# In a pipeline: what an operator behind the span does to the stream is on the span.


class Scripted(LLMEngine):
    """An engine that gives some chunks, then raises or returns."""

    def __init__(self, chunks: Sequence[LLMEngineOutput], error: Exception | None = None) -> None:
        self.chunks = chunks
        self.error = error

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model="m")

    async def generate(self, request: PreprocessedRequest, context: RequestContext) -> Any:
        for chunk in self.chunks:
            yield chunk
        if self.error is not None:
            raise self.error

    async def cleanup(self) -> None: ...


@dataclass(frozen=True)
class Seen:
    """What the consumer was handed, and what was recorded of it."""

    items: list[Annotated[LLMEngineOutput]]
    span: dict[str, Any]
    outcome: Outcome

    @property
    def error(self) -> BaseException | None:
        """The error of the last item."""
        return self.items[-1].error if self.items else None


async def answer(
    engine: Scripted,
    change: Callable[[Pipeline], Pipeline] = lambda pipeline: pipeline,
    *,
    take: int | None = None,
    record: bool = True,
) -> Seen:
    """Run one request; leave it after so many items."""
    spans, outcomes = Spans(), list[Outcome]()

    def pipeline(scope: RequestScope) -> Pipeline:
        scope.outcome.subscribe(outcomes.append)
        return change(standard_pipeline)

    adapter = EngineAdapter(engine, pipeline=pipeline, tracer=spans.tracer, record=record)
    items: list[Annotated[LLMEngineOutput]] = []
    stream = await adapter.generate(PreprocessedRequest(token_ids=[1]), RequestContext())
    async for item in stream:
        items.append(item)
        if len(items) == take:
            break
    await stream.aclose()
    (outcome,) = outcomes
    return Seen(items, rows_of(spans.one()), outcome)


def tokens(count: int) -> list[LLMEngineOutput]:
    return [LLMEngineOutput.token(number) for number in range(count)]


@operator(takes="items")
def first_of(count: int, last: object = None) -> Stage[Any, Any]:
    """End the stream after so many items, with *last* as one more."""
    item = yield
    for _ in range(count - 1):
        item = yield item
    return item if last is None else complete_with(item, last)


@operator(takes="items")
def without(*numbers: int) -> Stage[Any, Any]:
    """Empty some of the chunks, counted from 0."""
    number = 0
    item = yield
    while True:
        if number in numbers:
            item = Annotated(LLMEngineOutput(finish_reason=item.data.finish_reason))
        number += 1
        item = yield item


def behind(*operators: AnyOperator) -> Callable[[Pipeline], Pipeline]:
    return lambda pipeline: pipeline.with_operators(*operators)


CUTS: list[tuple[str, AnyOperator, Any]] = [
    ("its-own-terminal", first_of(2, Annotated(LLMEngineOutput.length())), LENGTH),
    ("its-own-error", first_of(2, Annotated[LLMEngineOutput].from_error(GONE)), GONE),
]


@pytest.mark.rows("O2")
@pytest.mark.parametrize(
    ("cut", "expected"), [each[1:] for each in CUTS], ids=[each[0] for each in CUTS]
)
@virtual
async def test_an_operator_behind_decides_how_it_ended(cut: AnyOperator, expected: Any) -> None:
    """A terminal or an error of its own is recorded, not the one that nobody was handed."""
    seen = await answer(Scripted([*tokens(4), LLMEngineOutput.stop()]), behind(cut))
    assert len(seen.items) == 3
    if isinstance(expected, Exception):
        assert seen.outcome.error is expected
        assert seen.span["error_kind"] == "Backend(Disconnected)"
    else:
        assert seen.outcome.finish_reason == expected
        assert seen.span["finish_reason"] == "Length"
    assert seen.span["output_tokens"] == 2


@pytest.mark.rows("O2", "S9")
@virtual
async def test_an_operator_that_cuts_a_stream_short_is_named() -> None:
    """No silent success: one error item, and the same on the span."""
    seen = await answer(Scripted([*tokens(4), LLMEngineOutput.stop()]), behind(first_of(2)))
    assert isinstance(seen.error, StreamIncomplete)
    assert "first_of" in str(seen.error)
    assert seen.outcome.error is seen.error
    assert seen.span["error_kind"] == "Backend(StreamIncomplete)"
    assert seen.span["output_tokens"] == 2
    assert seen.span["cancelled"] is False


@operator(takes="chunks")
def flushing(*last: LLMEngineOutput) -> Stage[Any, Any]:
    """Hand out some more at the end."""
    chunk = yield
    try:
        while True:
            chunk = yield chunk
    except Completed:
        return complete_with(*last)


FLUSHING: list[AnyOperator] = [
    flushing(),
    flushing(LLMEngineOutput.token(7)),
    stop_on_text(["x"]),
    limit_tokens(9),
    coalesce(),
]


@pytest.mark.rows("S9", "O2")
@pytest.mark.parametrize("flush", FLUSHING, ids=repr)
@virtual
async def test_an_engine_without_a_terminal_is_no_operators_fault(flush: AnyOperator) -> None:
    """An operator that has something to say at the end has not ended the stream."""
    seen = await answer(Scripted(tokens(2)), behind(flush))
    assert isinstance(seen.error, StreamIncomplete)
    assert "the engine's stream ended without a terminal" in str(seen.error)


ENDS: list[tuple[str, Scripted]] = [
    ("terminal", Scripted([*tokens(2), LLMEngineOutput.stop()])),
    ("error", Scripted(tokens(2), GONE)),
    ("no-terminal", Scripted(tokens(2))),
]


@pytest.mark.rows("P5", "P6a", "S9")
@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("with_items", [True, False])
@pytest.mark.parametrize("engine", [each[1] for each in ENDS], ids=[each[0] for each in ENDS])
@pytest.mark.parametrize("take", [1, 2, 3, None])
@virtual
async def test_the_last_item_completes_the_request(
    engine: Scripted, take: int | None, *, with_items: bool, recorded: bool
) -> None:
    """Leaving earlier is a drop, leaving with the terminal or the error item is none."""
    same = behind(without()) if with_items else behind()
    seen = await answer(engine, same, take=take, record=recorded)
    assert len(seen.items) == (take or 3)
    assert seen.outcome.is_dropped is (take in {1, 2})
    if seen.outcome.is_dropped:
        assert seen.span["finish_reason"] == "Dropped"
        assert seen.span["cancelled"] is True
        if recorded:
            assert seen.span["output_tokens"] == take
    elif recorded:
        assert ("error_kind" in seen.span) is (seen.error is not None)


LOST = ConnectionError("gone")


@pytest.mark.rows("P3", "P4", "P5", "P6a")
@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize(
    ("stream", "outcome"),
    [
        ({"items": [token(1), terminal()]}, Outcome("stop", None, is_cancelled=False)),
        ({"items": [token(1)]}, Outcome(None, None, is_cancelled=True)),
        ({"items": [token(1)], "error": LOST}, Outcome(None, LOST, is_cancelled=False)),
        ({"items": [token(1), token(2)], "take": 1}, Outcome(None, None, is_cancelled=True)),
        ({"items": [token(1)], "ends": False}, Outcome(None, None, is_cancelled=True)),
    ],
    ids=["terminal", "no-terminal", "error", "dropped", "dropped-waiting"],
)
def test_it_tells_once_how_the_stream_ended(
    life: Life, stream: dict[str, Any], outcome: Outcome, timed: bool
) -> None:
    """By the terminal, by the error, or by neither, with and without a record of the times."""
    told: list[Outcome] = []
    times = TokenTimes() if timed else None
    operators = [*([itl_window(times)] if times else []), on_outcome(told.append, times=times)]
    how = {name: value for name, value in stream.items() if name != "items"}
    life(stream["items"], *operators, **how)
    (one,) = told
    assert (one.finish_reason, one.error, one.is_cancelled) == (
        outcome.finish_reason,
        outcome.error,
        outcome.is_cancelled,
    )
    assert one.times is times
    assert one.is_dropped is (outcome.finish_reason is None and outcome.error is None)


@pytest.mark.rows("A2", "A3", "A4", "A5")
@pytest.mark.parametrize(
    ("chunks", "stop_at", "defer", "steps"),
    [
        ([token(1), terminal()], 0, False, [AbortStep.MADE]),
        ([token(1), terminal()], 0, True, [AbortStep.MADE_DEFERRED]),
        ([token(1), token(2), terminal()], 1, True, [AbortStep.MADE]),
        ([handshake(), terminal()], 0, True, [AbortStep.SUPPRESSED]),
        ([token(1), terminal()], None, True, None),
    ],
)
def test_the_gate_tells_what_becomes_of_the_abort(
    chunks: list[Any], stop_at: int | None, defer: bool, steps: list[AbortStep] | None
) -> None:
    """First that it was asked for, then one thing more; nothing for a stream without a stop."""
    told: list[AbortStep] = []
    source: Subject[Any] = Subject()
    stop: Subject[Any] = Subject()
    gate = deferred_abort(lambda: None, stop=stop, defer=defer, on_step=told.append)
    source.pipe(gate).subscribe()
    for place, chunk in enumerate(chunks):
        if place == stop_at:
            stop.on_next(True)
        source.on_next(chunk)
    source.on_completed()
    assert told == ([] if steps is None else [AbortStep.REQUESTED, *steps])
