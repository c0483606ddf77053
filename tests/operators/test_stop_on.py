"""`operators.stop_on`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reactivex.subject import Subject

from operators import stop_on, stop_on_text
from rx_backend import FinishReason, LLMEngineOutput
from rx_backend.testing import assert_marbles
from tests.examples import examples
from tests.operators._help import (
    LETTERS,
    Chunk,
    Life,
    Seen,
    handshake,
    pushed,
    terminal,
    token,
    watch,
)
from tests.operators._search import first_match, undecided

VALUES = {
    **LETTERS,
    "d": token(1, 2, 3, 1),
    "e": token(1, 2),
    "f": token(3, 1),
    "A": terminal(1),
    "D": terminal(1, 2, 3),
    "F": terminal(3),
    "C": terminal(3),
    "S": terminal(),
}


@pytest.mark.rows("S2", "S8")
@pytest.mark.parametrize(
    ("source", "result", "subscription"),
    [
        pytest.param("--|", "--|", "^-!", id="empty"),
        pytest.param("-h-a-c-|", "-h-a-c-|", "^------!", id="no-match"),
        pytest.param("-a-bca-|", "-a--(S|)", "^---!", id="across-chunks"),
        pytest.param("-d-a-|", "-(A|)", "^!", id="within-a-chunk"),
        pytest.param("-e-f-a-|", "---(aS|)", "^--!", id="over-an-edge"),
        pytest.param("-b-a-|", "---(ba)-|", "^----!", id="not-completed"),
        pytest.param("-b-b-c-|", "---b-(S|)", "^----!", id="begins-again"),
        pytest.param("-b-h-a-|", "-----(bha)-|", "^------!", id="order-is-kept"),
        pytest.param("-b-h-c-|", "-----(hS|)", "^----!", id="handshake-between"),
        pytest.param("-b-|", "---(b|)", "^--!", id="end-lets-out"),
        pytest.param("-b-T-|", "---(bT)-|", "^----!", id="terminal-lets-out"),
        pytest.param("-b-c#", "---(S|)", "^--!", id="error-after"),
        pytest.param("-a-#", "-a-#", "^--!", id="source-error"),
        pytest.param("-a-bc-|", "-a--(S!)", "^---!", id="dispose-inside-the-last"),
    ],
)
def test_a_sequence_ends_the_stream(source: str, result: str, subscription: str) -> None:
    """To stop on 2 3: the tokens before come out when it is clear, and the source is left."""
    assert_marbles(
        stop_on([[2, 3]]),
        source=source,
        result=result,
        values=VALUES,
        subscriptions=[subscription],
    )


# Few different tokens, so that sequences overlap, contain one another, and begin again within.
TOKENS = st.integers(0, 2)
STOPS = st.sets(st.lists(TOKENS, min_size=1, max_size=5).map(tuple), min_size=1, max_size=4)
CHUNKS = st.lists(st.lists(TOKENS, max_size=4), max_size=12)


def tokens_of(chunks: Sequence[Chunk | LLMEngineOutput]) -> tuple[int, ...]:
    return tuple(token_id for chunk in chunks for token_id in chunk.token_ids)


@pytest.mark.rows("S1", "S2", "S8")
@examples(200)
@given(
    stops=STOPS,
    chunks=CHUNKS,
    ends=st.booleans(),
    include=st.booleans(),
    min_tokens=st.integers(0, 6),
)
def test_the_result_is_that_of_a_search_of_the_whole_text(
    stops: set[tuple[int, ...]],
    chunks: list[list[int]],
    *,
    ends: bool,
    include: bool,
    min_tokens: int,
) -> None:
    """However the tokens are cut into chunks; chunks that are not cut are the source's own."""
    source = [token(*ids) for ids in chunks]
    if source and ends:
        source[-1].finish_reason = "length"
    before = copy.deepcopy(source)
    seen = pushed(source, stop_on(stops, include=include, min_tokens=min_tokens))
    tokens = tokens_of(source)
    match = first_match(stops, tokens, min_tokens)
    assert seen.end == "completed"
    assert source == before
    if match is None:
        assert seen.items == source
    else:
        assert tokens_of(seen.items) == tokens[: match[include]]
        reasons = [chunk.finish_reason for chunk in seen.items]
        assert reasons == [None] * (len(reasons) - 1) + ["stop"]
        assert sum(chunk not in source for chunk in seen.items) <= 2


@pytest.mark.rows("S1", "S4")
@examples(150)
@given(stops=STOPS, chunks=CHUNKS, include=st.booleans())
def test_no_chunk_is_held_longer_than_necessary(
    stops: set[tuple[int, ...]], chunks: list[list[int]], *, include: bool
) -> None:
    """After each chunk, those are out whose tokens are decided; with ``include`` all are."""
    subject: Subject[Any] = Subject()
    seen, _ = watch(subject.pipe(stop_on(stops, include=include)))
    for count in range(1, len(chunks) + 1):
        tokens = tuple(token_id for ids in chunks[:count] for token_id in ids)
        subject.on_next(token(*chunks[count - 1]))
        if seen.end != "open":
            assert first_match(stops, tokens)
            return
        decided = len(tokens) - (0 if include else undecided(stops, tokens))
        out = 0
        while out < count and len([t for ids in chunks[: out + 1] for t in ids]) <= decided:
            out += 1
        # A handshake behind a chunk that waits waits too.
        assert [chunk.token_ids for chunk in seen.items] == chunks[:out]


def of_choice(index: int | None, *token_ids: int) -> LLMEngineOutput:
    return LLMEngineOutput(list(token_ids), index=index)


@pytest.mark.rows("S1", "E3")
@pytest.mark.parametrize("end", ["completed", "match"])
def test_held_chunks_come_out_by_answer(life: Life, end: str) -> None:
    """At the end of the stream the chunks of each answer come out in their order, once."""
    waiting = [of_choice(0, 2), of_choice(1, 2), of_choice(0, 2), of_choice(2, 2)]
    last = [of_choice(3, 4), of_choice(3, 1)] if end == "match" else []
    seen = life([*waiting, *last], stop_on([[2, 2, 3], 4]))
    if end == "match":
        last = [LLMEngineOutput(finish_reason=FinishReason.STOP, stop_reason=4, index=3)]
    first, second, third, fourth = waiting
    assert seen == Seen([first, third, second, fourth, *last], "completed")


@pytest.mark.parametrize(
    ("stop", "tokens", "left"),
    [
        pytest.param(2, [1, 2, 3], [1], id="one-id"),
        pytest.param([2, 3], [1, 3, 2], [1], id="either-of-two-ids"),
        pytest.param([[2, 3], 4], [2, 4, 3], [2], id="a-sequence-or-an-id"),
        pytest.param({2, (3, 3)}, [3, 1, 3, 3], [3, 1], id="a-set"),
    ],
)
def test_it_stops_on_ids_and_sequences(
    life: Life, stop: Any, tokens: list[int], left: list[int]
) -> None:
    """Ids, sequences and both; what is left are the tokens before."""
    seen = life([token(token_id) for token_id in tokens], stop_on(stop))
    assert [*tokens_of(seen.items)] == left
    assert seen.items[-1].finish_reason == "stop"


def test_a_chunk_is_cut_with_its_per_token_data(life: Life) -> None:
    """Over two chunks: both are copies, the last says what it stopped on, the engine's stay whole."""

    def source() -> list[LLMEngineOutput]:
        return [
            LLMEngineOutput([1, 2], tokens=["a", "b"], text="ab", log_probs=[-1.0, -2.0]),
            LLMEngineOutput([3, 4], tokens=["c", "d"], text="cd", log_probs=[-3.0, -4.0]),
        ]

    chunks = source()
    assert life(chunks, stop_on([[2, 3]])).items == [
        LLMEngineOutput([1], tokens=["a"], text="a", log_probs=[-1.0]),
        LLMEngineOutput([], tokens=[], text="", log_probs=[], finish_reason=FinishReason.STOP),
    ]
    assert life(chunks, stop_on(3)).items[1].stop_reason == 3
    assert life(chunks, stop_on(3, include=True)).items[1] == LLMEngineOutput(
        [3],
        tokens=["c"],
        text="c",
        log_probs=[-3.0],
        finish_reason=FinishReason.STOP,
        stop_reason=3,
    )
    assert chunks == source()


@pytest.mark.rows("S1")
@pytest.mark.parametrize("stop", [None, [], ()])
@pytest.mark.parametrize("made", [stop_on, stop_on_text])
def test_nothing_to_stop_on_lets_everything_pass(life: Life, made: Any, stop: Any) -> None:
    """A request without stop tokens or stop strings needs no case of its own."""
    chunks = [handshake(), token(1, 2), terminal(3)]
    assert life(chunks, made(stop)) == Seen(chunks, "completed")
