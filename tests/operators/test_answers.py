"""Operators that end an answer, on requests of several answers."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
import reactivex
from hypothesis import given
from hypothesis import strategies as st

from operators import (
    DeadlineExpired,
    LoopScheduler,
    deadlines,
    enforce_cancellation,
    fuse,
    limit_tokens,
    stop_on,
    stop_on_text,
)
from rx_backend import Annotated, FinishReason, LLMEngineOutput
from rx_backend.testing import run_virtual
from tests.operators._help import LONG_S, now, pushed

LETTERS = "ab#"


def chunk_of(index: int | None, letters: str, ends: bool) -> LLMEngineOutput:
    """Return a chunk of so many letters, each of which is a token."""
    return LLMEngineOutput(
        [LETTERS.index(letter) for letter in letters],
        tokens=list(letters),
        text=letters,
        index=index,
        finish_reason=FinishReason.EOS if ends else None,
    )


CHUNKS = st.lists(
    st.builds(
        chunk_of, st.sampled_from([None, 0, 1, 2]), st.text(LETTERS, max_size=4), st.booleans()
    ),
    max_size=16,
)
STOPS = st.lists(st.text(LETTERS, min_size=1, max_size=4), min_size=1, max_size=3)
LIMITS = st.integers(1, 6)

Ending = Callable[[int], Any]


def limiting(limit: int) -> Ending:
    return lambda answers: limit_tokens(limit, answers=answers)


def stopping(stops: list[str], include: bool, least: int) -> Ending:
    ids = [[LETTERS.index(letter) for letter in stop] for stop in stops]
    return lambda answers: stop_on(ids, include=include, min_tokens=least, answers=answers)


def stopping_on_text(stops: list[str], include: bool, least: int) -> Ending:
    return lambda answers: stop_on_text(stops, include=include, min_tokens=least, answers=answers)


STOPPING = STOPS, st.booleans(), st.integers(0, 6)


@pytest.mark.rows("E3", "S1", "S8")
@pytest.mark.parametrize(
    "endings",
    [
        pytest.param(st.builds(limiting, LIMITS), id="limit_tokens"),
        pytest.param(st.builds(stopping, *STOPPING), id="stop_on"),
        pytest.param(st.builds(stopping_on_text, *STOPPING), id="stop_on_text"),
    ],
)
@given(data=st.data(), chunks=CHUNKS)
def test_each_answer_ends_separately(
    endings: st.SearchStrategy[Ending], data: st.DataObject, chunks: list[LLMEngineOutput]
) -> None:
    """Of three answers each is what it would be alone, and the last end is that of the stream."""
    ending = data.draw(endings)
    seen = pushed(copy.deepcopy(chunks), ending(3), ends=False)
    cut = ended = 0
    for index in range(3):
        own = [chunk for chunk in chunks if (chunk.index or 0) == index]
        ends = [place for place, chunk in enumerate(own, 1) if chunk.finish_reason]
        alone = pushed(copy.deepcopy(own[: ends[0]] if ends else own), ending(1), ends=False)
        out = [chunk for chunk in seen.items if (chunk.index or 0) == index]
        # What waits when another answer ends the stream comes out, as at any end.
        assert out[: len(alone.items)] == alone.items
        assert len(out) == len(alone.items) or seen.end == "completed"
        cut += alone.end == "completed"
        ended += any(chunk.finish_reason for chunk in out)
    # Where every answer has an end of the engine's own, the end of the stream is left to it.
    assert seen.end == ("completed" if cut and ended == 3 else "open")


# Operators that wait for the end, in either phase.


def chunk(item: LLMEngineOutput) -> Any:
    return item


def enveloped(item: LLMEngineOutput) -> Any:
    return Annotated(item)


def terminal_of(index: int) -> LLMEngineOutput:
    # The index of the first answer may be left out.
    return LLMEngineOutput(finish_reason=FinishReason.STOP, index=index or None)


async def stuck(
    ended: list[int], wrap: Callable[[LLMEngineOutput], Any], closed: list[float]
) -> AsyncGenerator[Any]:
    """Begin three answers, end some of them, and wait forever."""
    try:
        for index in range(3):
            yield wrap(LLMEngineOutput([index], index=index))
        for index in ended:
            yield wrap(terminal_of(index))
        await asyncio.sleep(LONG_S)
    finally:
        closed.append(now())


WAITS = pytest.mark.parametrize("wrap", [chunk, enveloped])
SOME = st.lists(st.sampled_from(range(3)), max_size=2, unique=True)


@pytest.mark.rows("E3")
@pytest.mark.parametrize("options", [{"idle_s": 5}, {"total_s": 5}], ids=["idle", "total"])
@WAITS
@given(ended=SOME)
def test_a_deadline_applies_until_the_last_answer_has_ended(
    wrap: Callable[[LLMEngineOutput], Any], options: dict[str, Any], ended: list[int]
) -> None:
    """The terminal of one answer is no end of the wait for another."""
    closed: list[float] = []

    async def run() -> None:
        async for _ in fuse(stuck(ended, wrap, closed), [deadlines(**options, answers=3)]):
            pass

    with pytest.raises(DeadlineExpired):
        run_virtual(run())
    assert closed == [5.0]


@pytest.mark.rows("E3", "E4")
@WAITS
@given(ended=SOME)
def test_each_open_answer_gets_a_terminal_at_the_cut_off(
    wrap: Callable[[LLMEngineOutput], Any], ended: list[int]
) -> None:
    """An engine that ignores a stop is closed, and each open answer has a terminal of its own."""
    closed: list[float] = []

    async def run() -> list[Any]:
        stop = reactivex.timer(1.0, scheduler=LoopScheduler())
        enforced = enforce_cancellation(
            3, lambda: wrap(LLMEngineOutput.cancelled()), stop=stop, answers=3
        )
        return [item async for item in fuse(stuck(ended, wrap, closed), [enforced])]

    chunks = [getattr(item, "data", item) for item in run_virtual(run())]
    ends = {each.index or 0: str(each.finish_reason) for each in chunks if each.finish_reason}
    assert ends == {index: "stop" if index in ended else "cancelled" for index in range(3)}
    assert len(chunks) == 6
    assert closed == [4.0]


@pytest.mark.rows("E3", "P6a")
@WAITS
def test_nothing_is_awaited_after_the_last_terminal(
    wrap: Callable[[LLMEngineOutput], Any],
) -> None:
    """Neither a deadline nor a stop disturbs an engine whose answers have all ended."""
    closed: list[float] = []

    async def run() -> list[Any]:
        stop = reactivex.timer(1.0, scheduler=LoopScheduler())
        waits = [
            deadlines(idle_s=5, total_s=5, answers=3),
            enforce_cancellation(3, LLMEngineOutput.cancelled, stop=stop, answers=3),
        ]
        stream = fuse(stuck([2, 0, 1], wrap, closed), waits)
        items = [await anext(stream) for _ in range(6)]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 100)
        return items

    assert len(run_virtual(run())) == 6
    assert closed == [100.0]
