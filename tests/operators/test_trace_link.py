"""`operators.trace_link`."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from operators import trace_link
from rx_backend.testing import assert_marbles
from tests.operators._help import LETTERS, Chunk, Life, handshake, terminal, token

OURS = "ours"
THEIRS = "theirs"

STAMPED = {
    **LETTERS,
    "A": Chunk([1], None, OURS),
    "V": Chunk([9], "stop", OURS),
    "S": Chunk([], "stop", OURS),
}


def linked(chunk: Chunk, link: object = THEIRS) -> Chunk:
    chunk.worker_trace_link = link
    return chunk


def links(chunks: Sequence[Chunk]) -> list[object]:
    return [chunk.worker_trace_link for chunk in chunks]


@pytest.mark.rows("T3", "T4")
@pytest.mark.parametrize(
    ("source", "result", "on_terminal"),
    [
        pytest.param("-h-a-b-T|", "-h-A-b-T|", "-h-A-b-S|", id="many"),
        pytest.param("-h-T-|", "-h-T-|", "-h-S-|", id="no-token"),
        pytest.param("-a-b-U|", "-A-b-U|", "-A-b-V|", id="terminal-with-a-token"),
        pytest.param("-U-|", "-V-|", "-V-|", id="terminal-is-first-token"),
        pytest.param("-a-#", "-A-#", "-A-#", id="source-error"),
    ],
)
def test_the_first_chunk_with_tokens_is_stamped(source: str, result: str, on_terminal: str) -> None:
    """All others come out as they were, but for the terminal with ``on_terminal``, in prefill mode."""
    for made, line in (
        (trace_link(OURS), result),
        (trace_link(OURS, on_terminal=True), on_terminal),
    ):
        assert_marbles(made, source=source, result=line, values=STAMPED)


@pytest.mark.rows("S1", "T3", "T4")
@pytest.mark.parametrize("on_terminal", [False, True])
def test_the_engines_chunk_is_unchanged(life: Life, on_terminal: bool) -> None:
    """A stamped chunk is a copy; every other chunk is the engine's own object."""
    chunks = [handshake(), token(1), token(2), linked(terminal())]
    seen = life(chunks, trace_link(OURS, on_terminal=on_terminal))
    assert links(chunks) == [None, None, None, THEIRS]
    same = [given is got for given, got in zip(chunks, seen.items, strict=True)]
    assert same == [True, False, True, True]
