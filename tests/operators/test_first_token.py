"""`operators.first_token`."""

from __future__ import annotations

import pytest

from operators import first_token
from rx_backend.testing import Marbles
from tests.operators._help import LETTERS, Chunk, Life, handshake, terminal, token


@pytest.mark.rows("F1")
@pytest.mark.parametrize(
    ("source", "result", "subscription", "called"),
    [
        pytest.param("--|", "--|", "^-!", "", id="empty"),
        pytest.param("--a|", "--a|", "^--!", "a", id="one"),
        pytest.param("-h-a-b-|", "-h-a-b-|", "^------!", "a", id="many"),
        pytest.param("-h-h-T-|", "-h-h-T-|", "^------!", "", id="no-token"),
        pytest.param("-h-U-|", "-h-U-|", "^----!", "U", id="terminal-with-a-token"),
        pytest.param("-h-#", "-h-#", "^--!", "", id="source-error"),
        pytest.param("-a-#", "-a-#", "^--!", "a", id="source-error-after"),
    ],
)
def test_the_callback_gets_the_first_chunk_with_tokens(
    source: str, result: str, subscription: str, called: str
) -> None:
    """Chunks pass when they come; the callback gets the first with tokens once, at its own time."""
    test = Marbles(LETTERS)
    played = test.cold(source)
    told: list[tuple[int, Chunk]] = []
    note = first_token(lambda chunk: told.append((round(test.clock()), chunk)))
    test.expect(played.pipe(note), result)
    assert played.subscriptions == [subscription]
    assert told == [(source.index(letter), LETTERS[letter]) for letter in called]


@pytest.mark.rows("F1", "S1")
def test_the_callback_comes_before_the_chunk(life: Life) -> None:
    """The callback comes first, and the chunks that come out are the source's own objects."""
    journal: list[str] = []
    chunks = [handshake(), token(1), token(2), terminal()]
    tell = first_token(lambda chunk: journal.append(f"told {chunk.token_ids}"))
    show = first_token(lambda chunk: journal.append(f"went on {chunk.token_ids}"))
    seen = life(chunks, tell, show)
    assert journal == ["told [1]", "went on [1]"]
    assert list(map(id, seen.items)) == list(map(id, chunks))
