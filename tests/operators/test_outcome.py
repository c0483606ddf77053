"""`operators._outcome` and `on_outcome`: what is recorded is what the consumer was handed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import reactivex
from hypothesis import example, given
from hypothesis import strategies as st

from operators import (
    Outcome,
    TokenTimes,
    coalesce,
    itl_window,
    limit_tokens,
    on_outcome,
    stop_on_text,
)
from operators.assembly import DeliveredItems, OutcomeTracker, error_type_of
from operators.authoring import AnyOperator, Completed, Stage, complete_with, operator
from rx_backend import (
    Annotated,
    Disconnected,
    EngineAdapter,
    FinishReason,
    LLMEngineOutput,
    PreprocessedRequest,
    RequestContext,
    StreamIncomplete,
)
from tests.engines import ScriptedEngine
from tests.operators._help import Life, terminal, token

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


def handed_out(items: Iterable[Any]) -> DeliveredItems:
    """Look at items as a pipeline does, which only counts chunks of one token."""
    handed = DeliveredItems(FinishReason.parse)
    for item in items:
        chunk: Any = getattr(item, "data", None)
        is_plain = isinstance(chunk, LLMEngineOutput) and chunk.finish_reason is None
        if is_plain and len(chunk.token_ids) == 1:
            handed.count_one()
        else:
            assert handed.record(item) is item
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
@example(
    engine=[],
    handed=[Annotated(LLMEngineOutput.token(1))],
    answers=1,
    failure=None,
    dropped=True,
    stopped=False,
)
def test_the_outcome_is_that_of_the_delivered_items(
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
            record.times.record_terminal(chunk)
    record.failure = failure
    if handed is not None:
        record.delivered = handed_out(handed)
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
        ordered = [expected[index] for index in sorted(expected)]
        assert outcome.finish_reason == worst(ordered)
        assert outcome.finish_reasons == tuple(ordered)
        assert outcome.is_cancelled is stopped
    if handed is not None:
        assert outcome.output_tokens == sum(len(chunk.token_ids) for chunk in seen)
    ways = (outcome.finish_reason is not None, outcome.error is not None, outcome.is_dropped)
    assert sum(ways) == 1


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
def test_a_drop_after_the_last_item_does_not_count(last: Any) -> None:
    """A consumer that received the terminal or the error item may stop there."""
    record = tracker()
    # What an error item in its JSON form was made of.
    record.failure = GONE
    record.delivered = handed_out([Annotated(LLMEngineOutput.token(1)), last])
    assert record.has_ended()
    assert not record.end(dropped=True).is_dropped


@pytest.mark.rows("O2")
def test_items_other_than_chunks_do_not_affect_the_outcome() -> None:
    """Where only events passed, what the engine gave is what is known."""
    record = tracker()
    record.times.record_terminal(LLMEngineOutput.stop())
    record.delivered = handed_out([Annotated(comment=["ping"]), "text", None])
    outcome = record.end(dropped=False)
    assert (outcome.finish_reason, outcome.delivered_tokens) == (STOP, None)


@pytest.mark.rows("P7")
def test_observers_are_called_once_and_independently(caplog: pytest.LogCaptureFixture) -> None:
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
def test_a_failing_is_cancelled_counts_as_false(caplog: pytest.LogCaptureFixture) -> None:
    """The observer is notified of the end all the same."""

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
def test_error_type_has_few_values(
    outcome: Outcome, expected: str | None, *, is_error: bool
) -> None:
    """One of few texts, none for a good end; a drop is no error."""
    assert error_type_of(outcome) == expected
    assert outcome.is_error is is_error


# In a pipeline.


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
async def test_an_engine_without_a_terminal_is_not_blamed_on_an_operator(
    flush: AnyOperator,
) -> None:
    """An operator that has something to say at the end has not ended the stream."""
    chunks = [LLMEngineOutput.token(number) for number in range(2)]
    adapter = EngineAdapter(ScriptedEngine(*chunks)).with_operators(flush)
    stream = await adapter.generate(PreprocessedRequest(token_ids=[1]), RequestContext())
    *_, last = [item async for item in stream]
    assert isinstance(last.error, StreamIncomplete)
    assert "the engine's stream ended without a terminal" in str(last.error)


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
def test_the_outcome_is_reported_once(
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
