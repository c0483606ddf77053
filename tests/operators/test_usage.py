"""`operators.usage`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators import usage
from rx_backend import LLMEngineOutput, protocols
from rx_backend.protocols import CompletionUsage, FinishReason
from rx_backend.testing import assert_marbles
from tests.operators._help import LETTERS, Chunk, Life, pushed, token

VALUES = {**LETTERS, "V": Chunk([], "stop", None, (3, 2)), "W": Chunk([9], "stop", None, (3, 2))}


def counts(prompt_tokens: int, completion_tokens: int) -> tuple[int, int]:
    return prompt_tokens, completion_tokens


@pytest.mark.rows("S1")
@pytest.mark.parametrize(
    ("source", "result", "told"),
    [
        pytest.param("--|", "--|", (3, 0), id="empty"),
        pytest.param("-h-|", "-h-|", (3, 0), id="handshake"),
        pytest.param("-a-b-T|", "-a-b-V|", (3, 2), id="terminal"),
        pytest.param("-a-U|", "-a-W|", (3, 2), id="terminal-with-a-token"),
        pytest.param("-a-b-|", "-a-b-|", (3, 2), id="no-terminal"),
        pytest.param("-a-b-#", "-a-b-#", (3, 2), id="source-error"),
        pytest.param("-a-b-T|", "-a-!", (3, 1), id="early-dispose"),
        pytest.param("-a-b-T|", "-a-(b!)", (3, 2), id="dispose-inside"),
        pytest.param("-a-b-T|", "-a-b-(V!)", (3, 2), id="dispose-inside-the-last"),
    ],
)
def test_the_terminal_has_the_usage_and_every_end_is_reported(
    source: str, result: str, told: tuple[int, int]
) -> None:
    """Chunks pass when they come; whatever the end is, it is reported once."""
    ends: list[tuple[int, int]] = []
    counting = usage(3, counts, on_end=ends.append)
    assert_marbles(counting, source=source, result=result, values=VALUES)
    assert ends == [told]


@pytest.mark.rows("P3", "P5", "S7")
@given(
    chunks=st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=8),
    take=st.none() | st.integers(1, 8),
    fails=st.booleans(),
)
def test_every_token_is_counted_once(
    chunks: list[list[int]], take: int | None, *, fails: bool
) -> None:
    """Of any chunking and to any end, token ids are counted, not chunks."""
    ends: list[tuple[int, int]] = []
    source = [token(*ids) for ids in chunks]
    error = LookupError() if fails else None
    seen = pushed(source, usage(5, counts, on_end=ends.append), error=error, take=take)
    assert list(map(id, seen.items)) == list(map(id, source[:take]))
    assert ends == [(5, sum(map(len, chunks[:take])))]


def test_the_engine_own_usage_is_kept(life: Life) -> None:
    """The engine knows better (cached tokens, say), and the report has what the client received."""
    own = protocols.usage(30, 20)
    ends: list[CompletionUsage] = []
    chunks = [LLMEngineOutput.token(7), LLMEngineOutput.stop().with_usage(own)]
    seen = life(chunks, usage(3, protocols.usage, on_end=ends.append))
    assert list(map(id, seen.items)) == list(map(id, chunks))
    assert ends == [own]


@pytest.mark.rows("P11")
@pytest.mark.parametrize("told", [0, 1, 2])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=str)
def test_the_terminals_of_several_answers_add_up(
    life: Life, told: int, order: tuple[int, int]
) -> None:
    """Each has the tokens of its own answer where the engine counts them; the whole is reported."""
    ends: list[CompletionUsage] = []
    chunks = [LLMEngineOutput([index] * (index + 2), index=index) for index in (0, 1)]
    for place, index in enumerate(order):
        own = protocols.usage(3, index + 2) if place < told else None
        end = FinishReason.STOP
        chunks.append(LLMEngineOutput(finish_reason=end, index=index, completion_usage=own))
    counting = usage(3, protocols.usage, on_end=ends.append, answers=2)
    counts = [chunk.completion_usage for chunk in life(chunks, counting).items]
    assert sum(each.completion_tokens for each in counts if each) == 5
    assert counts[-1] is not None
    assert ends == [protocols.usage(3, 5)]
