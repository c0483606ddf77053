"""`operators.peek_first`, and the streams that items can be put back to."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators import fuse, peek_first, until_terminal
from operators.authoring import FusedRun
from rx_backend.testing import run_virtual
from tests.operators._drops import Way
from tests.operators._help import (
    Engine,
    Owner,
    Seen,
    by_aclose,
    by_close,
    by_losing_it,
    collect,
    handshake,
    settle,
    spy,
    terminal,
    token,
    twice,
)


@dataclass(frozen=True)
class Wrapped:
    """The shape of an annotated item."""

    data: object = None
    error: Exception | None = None


@dataclass(frozen=True)
class Failed:
    """The shape of a finish reason that is an error."""

    message: str | None = None
    is_error: bool = True

    def __str__(self) -> str:
        return "error"


def peekable(engine: Engine, *operators: Any) -> FusedRun[Any]:
    return fuse(engine(), operators)


@pytest.mark.rows("S1", "S4")
@pytest.mark.parametrize(
    ("items", "pulled"),
    [
        pytest.param([token(1), token(2)], 1, id="token"),
        pytest.param([handshake(), handshake(), token(1), token(2)], 3, id="handshakes"),
        pytest.param([handshake(), terminal(), token(2)], 2, id="terminal"),
        pytest.param([terminal(1, reason=Failed())], 1, id="error-terminal-with-token"),
        pytest.param([Wrapped(), Wrapped(handshake()), Wrapped(token(1))], 3, id="wrapped"),
        pytest.param([Wrapped(terminal())], 1, id="wrapped-terminal"),
        pytest.param([{"token_ids": ()}, {"token_ids": (1,)}, "more"], 2, id="mapping"),
        pytest.param([Wrapped({"finish_reason": "stop"}), Wrapped()], 1, id="wrapped-mapping"),
        pytest.param(["text", "more"], 1, id="other-shape"),
        pytest.param([handshake(), handshake()], 2, id="no-sign-at-all"),
        pytest.param([], 0, id="nothing"),
    ],
)
async def test_it_pulls_up_to_the_first_content(items: Sequence[Any], pulled: int) -> None:
    """And no further; then everything comes out of the same stream, from its beginning."""
    engine = Engine(items, every_s=1.0)
    stream = peekable(engine)
    assert await peek_first(stream) is stream
    assert engine.pulls == pulled
    assert await collect(stream) == Seen([*items], "completed")
    assert engine.closed == 1


@pytest.mark.rows("S5", "S6")
@pytest.mark.parametrize("before", [[], [handshake(), handshake()], [Wrapped()]])
async def test_an_early_failure_is_raised(before: Sequence[Any]) -> None:
    """Whether the pull raises it or an item carries it; the engine is closed to its end by then."""
    gone = LookupError("gone")
    for engine in (
        Engine(before, error=gone, closing_s=2.0),
        Engine([*before, Wrapped(error=gone)], ends=False, closing_s=2.0),
    ):
        with pytest.raises(LookupError) as caught:
            await peek_first(peekable(engine))
        assert (caught.value, engine.closed) == (gone, 1)


@pytest.mark.parametrize("reason", [Failed("boom"), Failed()])
async def test_an_early_error_terminal_is_raised(reason: Failed) -> None:
    """As what *error* makes of its message."""
    for item in (terminal(reason=reason), Wrapped(terminal(reason=reason))):
        engine = Engine([handshake(), item])
        with pytest.raises(RuntimeError, match=reason.message or "error"):
            await peek_first(peekable(engine))
        with pytest.raises(ConnectionError):
            await peek_first(peekable(engine), error=ConnectionError)
        assert engine.closed == 2


@pytest.mark.rows("S6")
async def test_a_later_failure_comes_out_of_the_stream() -> None:
    """Once the stream has shown that it works, failures come out of the stream."""
    stream = await peek_first(peekable(Engine([token(1)], error=LookupError("gone"))))
    seen = await collect(stream)
    assert (seen.items, repr(seen.error)) == ([token(1)], "LookupError('gone')")


@pytest.mark.rows("S7")
@pytest.mark.parametrize("way", ["cancel", "close", "timeout"])
async def test_a_drop_while_peeking(way: str) -> None:
    """Being cancelled is a drop; a stream that somebody closes comes back and gives nothing."""
    engine = Engine([handshake(), token(1)], every_s=2.0)
    stream = peekable(engine)
    peek = asyncio.create_task(peek_first(stream))
    await asyncio.sleep(3.0)
    if way == "timeout":
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(peek, 0.5)
    elif way == "cancel":
        peek.cancel()
        await asyncio.wait([peek])
        assert peek.cancelled()
    else:
        stream.close()
        assert await peek is stream
    assert engine.closed == 1
    assert await collect(stream) == Seen([], "completed")


@pytest.mark.rows("S7")
@pytest.mark.parametrize("drop", [by_close, by_aclose, by_losing_it])
@pytest.mark.parametrize("taken", [0, 1, 2])
@pytest.mark.parametrize("is_over", [False, True])
async def test_a_drop_discards_items_that_were_put_back(
    drop: Way, taken: int, is_over: bool
) -> None:
    """Also when the terminal was among it; reference counting alone finds a stream that is lost."""
    end = terminal() if is_over else token(1)
    engine = Engine([handshake(), end, token(2)])
    owner: Owner = [await peek_first(peekable(engine, until_terminal()))]
    await settle()
    assert engine.closed == is_over
    gc.disable()
    try:
        for item in [handshake(), end][:taken]:
            assert await anext(owner[0]) == item
        await drop(owner)
        await settle()
        assert engine.closed == 1
    finally:
        gc.enable()
    if owner:
        assert await collect(owner[0]) == Seen([], "completed")


@pytest.mark.rows("P6a", "S2")
async def test_the_last_item_still_completes_the_stream() -> None:
    """For what is built on top of the stream: it completes with the terminal, not before."""
    journal: list[str] = []
    engine = Engine([handshake(), terminal(), token(1)])
    inner = await peek_first(peekable(engine, until_terminal()))
    assert not inner.ended
    outer = fuse(inner, [spy(journal)])
    await anext(outer)
    assert journal[1:] == []
    await anext(outer)
    assert journal[2:] == ["|"]


async def test_any_iterator_may_be_peeked() -> None:
    """A stream is made of it that owns it."""
    engine = Engine([handshake(), token(1), token(2)])
    stream = await peek_first(engine())
    assert engine.pulls == 2
    assert await anext(stream) == handshake()
    await stream.aclose()
    assert engine.closed == 1
    chunks = await peek_first(fuse(Engine([token(1), token(2)])(), [twice()]))
    assert len((await collect(chunks)).items) == 4


@given(
    pulls=st.lists(st.integers(0, 3), max_size=4),
    length=st.integers(0, 6),
    doubled=st.booleans(),
)
def test_items_that_are_put_back_come_first(
    pulls: Sequence[int], length: int, doubled: bool
) -> None:
    """However often items are taken and put back, all come out, once and in order."""

    async def play() -> None:
        engine = Engine(range(length))
        stream = peekable(engine, *([twice()] if doubled else []))
        for count in pulls:
            taken: list[int] = []
            with suppress(StopAsyncIteration):
                for _ in range(count):
                    taken.append(await anext(stream))  # noqa: PERF401 - the end keeps what came
            stream.put_back(taken)
        expected = [number for number in range(length) for _ in range(1 + doubled)]
        assert await collect(stream) == Seen(expected, "completed")

    run_virtual(play())
