"""`operators.limit_tokens`, and `first_tokens`, which cuts a chunk."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators import limit_tokens
from operators.authoring import first_tokens
from rx_backend import FinishReason, LLMEngineOutput
from rx_backend.testing import assert_marbles
from tests.operators._help import LETTERS, Life, Seen, handshake, pushed, terminal, token

VALUES = {**LETTERS, "d": token(1, 2, 3), "B": terminal(2, reason="length")}
VALUES["D"] = terminal(1, reason="length")


@pytest.mark.rows("S2", "S8")
@pytest.mark.parametrize(
    ("source", "result", "subscription"),
    [
        pytest.param("--|", "--|", "^-!", id="empty"),
        pytest.param("-a-|", "-a-|", "^--!", id="below"),
        pytest.param("-a-b-c-|", "-a-(B|)", "^--!", id="reached"),
        pytest.param("-a-d-|", "-a-(D|)", "^--!", id="crossed"),
        pytest.param("-hh-a-h-b-h", "-hh-a-h-(B|)", "^-------!", id="handshakes-don't-count"),
        pytest.param("-a-T-|", "-a-T-|", "^----!", id="terminal-below"),
        pytest.param("-a-U-c-|", "-a-(U|)", "^--!", id="terminal-at-the-limit"),
        pytest.param("-a-#", "-a-#", "^--!", id="source-error"),
        pytest.param("-a-b-#", "-a-(B|)", "^--!", id="error-after"),
        pytest.param("-a-b-|", "-a-(B!)", "^--!", id="dispose-inside-the-last"),
    ],
)
def test_the_stream_ends_with_its_last_token(source: str, result: str, subscription: str) -> None:
    """Two tokens come out, whatever chunks they are in; the source is left in that moment."""
    assert_marbles(
        limit_tokens(2), source=source, result=result, values=VALUES, subscriptions=[subscription]
    )


CHUNKS = st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=8)


@pytest.mark.rows("S1", "S2", "S8")
@given(chunks=CHUNKS, limit=st.integers(1, 12), ends=st.none() | st.integers(0, 7))
def test_exactly_the_first_tokens_come_out(
    chunks: list[list[int]], limit: int, ends: int | None
) -> None:
    """Of any chunking the first tokens come out; a stream that is short enough comes out as it is."""
    source = [token(*ids) for ids in chunks]
    if ends is not None and ends < len(source):
        source[ends].finish_reason = "eos"
        del source[ends + 1 :]
    before = copy.deepcopy(source)
    seen = pushed(source, limit_tokens(limit))
    tokens = [token_id for chunk in source for token_id in chunk.token_ids]
    out = [token_id for chunk in seen.items for token_id in chunk.token_ids]
    assert seen.end == "completed"
    assert out == tokens[:limit]
    assert source == before
    reasons = [chunk.finish_reason for chunk in seen.items]
    assert reasons[:-1] == [None] * len(reasons[:-1])
    reached_by_own = [chunk for chunk in source[-1:] if chunk.finish_reason and chunk.token_ids]
    if len(tokens) < limit or (len(tokens) == limit and reached_by_own):
        assert list(map(id, seen.items)) == list(map(id, source))
    else:
        assert reasons[-1] == "length"
        assert list(map(id, seen.items[:-1])) == list(map(id, source[: len(seen.items) - 1]))


class Bare(NamedTuple):
    """A chunk whose ``index`` is a method of every tuple."""

    token_ids: tuple[int, ...]
    finish_reason: str | None = None


def test_a_chunk_without_an_index_belongs_to_the_first_answer(life: Life) -> None:
    """Whatever else has that name."""
    (*_, last) = life([LLMEngineOutput([1]), LLMEngineOutput([2], index=0)], limit_tokens(2)).items
    assert last.finish_reason is FinishReason.LENGTH
    chunks = [Bare((1,)), Bare((2,)), Bare((3,), "stop"), Bare((4,))]
    assert life(chunks, limit_tokens(3)) == Seen(chunks[:3], "completed")


def test_cutting_tokens_replaces_the_engines_finish_reason(life: Life) -> None:
    """The reason is the limit then, and what it stopped on is gone; the engine's chunk stays whole."""
    whole = LLMEngineOutput([1, 2, 3], finish_reason=FinishReason.STOP, stop_reason=3, index=0)
    before = copy.deepcopy(whole)
    cut = LLMEngineOutput([1, 2], finish_reason=FinishReason.LENGTH, index=0)
    assert life([whole], limit_tokens(2)) == Seen([cut], "completed")
    assert whole == before


@pytest.mark.rows("S1")
def test_no_limit_lets_everything_pass(life: Life) -> None:
    """None is no limit, and there may be one beyond what a machine can count."""
    chunks = [handshake(), token(1, 2), terminal(3)]
    for limit in (None, 1 << 100):
        assert life(chunks, limit_tokens(limit)) == Seen(chunks, "completed")


WORDS = st.lists(st.text("ab ", min_size=1, max_size=3), max_size=5)


def chunk_of(words: list[str]) -> LLMEngineOutput:
    return LLMEngineOutput(
        token_ids=list(range(len(words))),
        tokens=list(words),
        text="".join(words),
        log_probs=[-0.5 * n for n in range(len(words))],
        cum_log_probs=sum(-0.5 * n for n in range(len(words))),
        index=1,
    )


@pytest.mark.rows("E6")
@given(words=WORDS, count=st.integers(0, 6))
def test_the_cut_chunk_has_the_first_tokens(words: list[str], count: int) -> None:
    """All per-token data is cut alike, and the chunk itself is unchanged."""
    chunk = chunk_of(words)
    before = copy.deepcopy(chunk)
    assert first_tokens(chunk, count) == chunk_of(words[:count])
    assert first_tokens(chunk, count) is not chunk
    assert chunk == before


@pytest.mark.parametrize("tokens", [None, ["a", None, "c"], ["a", "b"], ["x", "y", "z"]])
def test_text_that_can_not_be_cut_is_removed(tokens: Any) -> None:
    """It would describe removed tokens; likewise the sum of log probabilities."""
    chunk = LLMEngineOutput([1, 2, 3], tokens=tokens, text="abc", cum_log_probs=-3.0)
    assert first_tokens(chunk, 2).text is None
    assert first_tokens(chunk, 2).cum_log_probs is None
    assert first_tokens(chunk, 3).text == "abc"


def test_a_negative_count_is_rejected() -> None:
    """A slice would count from the end."""
    with pytest.raises(ValueError, match="first_tokens: count: expected at least 0 tokens, got -1"):
        first_tokens(LLMEngineOutput([1, 2]), -1)
