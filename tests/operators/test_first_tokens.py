"""`operators.authoring.first_tokens`: what a token budget needs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.authoring import Stage, emit, first_tokens, operator
from rx_backend import FinishReason, LLMEngineOutput
from tests.operators._help import Life

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
def test_it_is_the_chunk_of_the_first_tokens(words: list[str], count: int) -> None:
    """Everything that is told by token is cut alike, and the chunk itself is left alone."""
    chunk = chunk_of(words)
    before = copy.deepcopy(chunk)
    assert first_tokens(chunk, count) == chunk_of(words[:count])
    assert first_tokens(chunk, count) is not chunk
    assert chunk == before


@pytest.mark.parametrize("tokens", [None, ["a", None, "c"], ["a", "b"], ["x", "y", "z"]])
def test_text_that_can_t_be_cut_is_gone(tokens: Any) -> None:
    """It would tell of tokens that are gone."""
    chunk = LLMEngineOutput([1, 2, 3], tokens=tokens, text="abc")
    assert first_tokens(chunk, 2).text is None
    assert first_tokens(chunk, 3).text == "abc"


def test_a_negative_count_is_refused() -> None:
    """A slice would count from the end."""
    with pytest.raises(ValueError, match="first_tokens: count: expected at least 0 tokens, got -1"):
        first_tokens(LLMEngineOutput([1, 2]), -1)


def test_a_token_budget(life: Life) -> None:
    """An operator that shares a budget among streams ends one in the midst of a chunk."""
    spent: list[int] = []

    @operator(takes="chunks")
    def within(left: Callable[[], int]) -> Stage[LLMEngineOutput, LLMEngineOutput]:
        chunk = yield emit()
        while len(chunk.token_ids) <= left():
            spent.append(len(chunk.token_ids))
            chunk = yield chunk
        last = first_tokens(chunk, left())
        last.finish_reason = FinishReason.LENGTH
        return last

    chunks = [LLMEngineOutput([1], text="a"), LLMEngineOutput([2, 3], tokens=["b", "c"], text="bc")]
    assert life(chunks, within(lambda: 2 - sum(spent))).items == [
        chunks[0],
        LLMEngineOutput([2], tokens=["b"], text="b", finish_reason=FinishReason.LENGTH),
    ]
