"""`operators.until_terminal`."""

from __future__ import annotations

import pytest

from operators import fuse, until_terminal
from rx_backend.testing import assert_marbles
from tests.operators._help import (
    LETTERS,
    Engine,
    Life,
    Seen,
    collect,
    handshake,
    settle,
    spy,
    terminal,
    token,
    virtual,
)


@pytest.mark.rows("S2", "S8")
@pytest.mark.parametrize(
    ("source", "result", "subscription"),
    [
        pytest.param("----", "----", "^", id="never"),
        pytest.param("--|", "--|", "^-!", id="empty"),
        pytest.param("--T-|", "--(T|)", "^-!", id="one"),
        pytest.param("-a-b-U-|", "-a-b-(U|)", "^----!", id="many"),
        pytest.param("-a-T-b-T-|", "-a-(T|)", "^--!", id="items-after"),
        pytest.param("-(aTb)-|", "-(aT|)", "^!", id="items-after-at-once"),
        pytest.param("-a-T-#", "-a-(T|)", "^--!", id="error-after"),
        pytest.param("-a-#", "-a-#", "^--!", id="source-error"),
        pytest.param("-a-b-|", "-a-b-|", "^----!", id="no-terminal"),
        pytest.param("-a-b-", "-a-b-", "^", id="no-end"),
        pytest.param("-a-b-T-|", "-a-!", "^--!", id="early-dispose"),
        pytest.param("-a-b-T-|", "-a-(b!)", "^--!", id="dispose-inside"),
        pytest.param("-a-T-|", "-a-(T!)", "^--!", id="dispose-inside-the-last"),
    ],
)
def test_the_stream_ends_with_its_first_terminal(
    source: str, result: str, subscription: str
) -> None:
    """The terminal comes out, the source is left in that moment, and nothing comes after it."""
    assert_marbles(
        until_terminal(),
        source=source,
        result=result,
        values=LETTERS,
        subscriptions=[subscription],
    )


@pytest.mark.rows("S1", "S2", "S8")
def test_chunks_pass_unchanged(life: Life) -> None:
    """The chunks up to the terminal are the source's own objects; the rest never shows."""
    chunks = [handshake(), token(1), terminal(2, 3), token(4), terminal()]
    seen = life(chunks, until_terminal())
    assert seen.end == "completed"
    assert list(map(id, seen.items)) == list(map(id, chunks[:3]))


@pytest.mark.rows("E3")
@pytest.mark.parametrize("reason", ["cancelled", 0, "", False])
def test_any_finish_reason_is_a_terminal(life: Life, reason: object) -> None:
    """Whatever is not None counts as a finish reason, be it false."""
    last = terminal(reason=reason)
    assert life([last, token(1)], until_terminal()) == Seen([last], "completed")


@pytest.mark.rows("S2", "S4")
@virtual
async def test_the_engine_is_closed_when_the_terminal_is_handed_out() -> None:
    """The engine is not pulled beyond its terminal, and closed though nobody pulls any more."""
    engine = Engine([token(1), terminal(), token(2)])
    stream = fuse(engine(), [until_terminal()])
    for _ in range(2):
        engine.journal.append(f"got {(await anext(stream)).finish_reason}")
    assert stream.ended
    await settle()
    assert engine.journal == ["pull", "got None", "pull", "got stop", "closed"]


@pytest.mark.rows("S2")
def test_operators_behind_it_complete(life: Life) -> None:
    """For what comes behind, the terminal is followed by an ordinary end; ahead it is a drop."""
    journal: list[str] = []
    chunks = [token(1), terminal(), token(2)]
    life(chunks, spy(journal, "ahead "), until_terminal(), spy(journal, "behind "))
    assert [entry for entry in journal if entry[-1] in "!|#"] == ["ahead !", "behind |"]


@pytest.mark.rows("S8")
@virtual
async def test_every_stream_ends_with_its_own_terminal() -> None:
    """One operator in two streams at once: the end of one is nothing to the other."""
    until = until_terminal()
    short = fuse(Engine([terminal()])(), [until])
    longer = fuse(Engine([token(1), token(2), terminal()])(), [until])
    first = await anext(longer)
    assert await collect(short) == Seen([terminal()], "completed")
    assert [first, *(await collect(longer)).items] == [token(1), token(2), terminal()]
