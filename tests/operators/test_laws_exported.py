"""Laws for random pipelines of the operators that are exported, as they are."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators import fuse
from operators.authoring import AnyOperator
from rx_backend.testing import run_virtual
from tests.operators._help import (
    LONG_S,
    Engine,
    Seen,
    collect,
    fused,
    fused_waiting,
    handshake,
    pushed,
    terminal,
    token,
)
from tests.operators.test_contract import MADE
from tests.operators.test_contract_async import ALL
from tests.operators.test_contract_async import pushed as pushed_on_the_loop

CHUNKS = st.one_of(
    st.builds(handshake),
    st.builds(token, st.integers(1, 9)),
    st.builds(token, st.integers(1, 9), st.integers(1, 9)),
    st.builds(terminal),
    st.builds(terminal, st.integers(1, 9)),
)
STREAMS = st.lists(CHUNKS, max_size=6)
ERRORS = st.sampled_from([None, LookupError("gone")])
SYNCHRONOUS = st.lists(st.sampled_from(sorted(MADE)), max_size=6)
ANY = st.lists(st.sampled_from(sorted(ALL)), min_size=1, max_size=5)


def made(names: Sequence[str]) -> list[AnyOperator]:
    return [ALL[name]() for name in names]


def fresh(chunks: list[Any]) -> list[Any]:
    """Chunks of one's own: engines don't share them between streams."""
    return copy.deepcopy(chunks)


@pytest.mark.rows("S1", "S2", "S6")
@settings(max_examples=150, deadline=None)
@given(names=SYNCHRONOUS, chunks=STREAMS, error=ERRORS, take=st.none() | st.integers(1, 5))
def test_fused_is_what_a_pipe_gives(
    names: list[str], chunks: list[Any], error: Exception | None, take: int | None
) -> None:
    """Of synchronous operators, pulled and pushed."""
    piped = pushed(fresh(chunks), *made(names), error=error, take=take)
    for life in (fused, fused_waiting):
        assert life(fresh(chunks), *made(names), error=error, take=take) == piped


@pytest.mark.rows("S1", "S2", "S6", "E3")
@settings(max_examples=150, deadline=None)
@given(names=ANY, chunks=STREAMS, error=ERRORS, take=st.none() | st.integers(1, 5))
def test_on_a_loop_fused_is_what_a_pipe_gives(
    names: list[str], chunks: list[Any], error: Exception | None, take: int | None
) -> None:
    """Of operators of any kind; and behind ``until_terminal`` there is one terminal, the last."""
    piped = pushed_on_the_loop(fresh(chunks), *made(names), error=error, take=take)
    pulled = fused_waiting(fresh(chunks), *made(names), error=error, take=take)
    assert pulled == piped
    if names[-1] == "until_terminal":
        ends = [item for item in pulled.items if getattr(item, "finish_reason", None) is not None]
        assert ends == [item for item in pulled.items[-1:] if item in ends]


@pytest.mark.rows("S7")
@settings(max_examples=150, deadline=None)
@given(
    names=ANY,
    chunks=STREAMS,
    error=ERRORS,
    at_s=st.floats(0.0, 8.0),
    how=st.sampled_from(["cancel", "close", "not at all"]),
)
def test_the_engine_is_closed_once(
    names: list[str], chunks: list[Any], error: Exception | None, at_s: float, how: str
) -> None:
    """However and whenever the stream ends, with any operators in it; and the end is told once."""
    ended: list[str] = []

    async def run() -> Engine:
        engine = Engine(fresh(chunks), error=error, every_s=1.0)
        stream = fuse(engine(), made(names), on_end=lambda _dropped: ended.append("end"))
        consumer = asyncio.create_task(collect(stream))
        await asyncio.sleep(at_s)
        if how == "cancel":
            consumer.cancel()
        elif how == "close":
            stream.close()
        await asyncio.wait([consumer])
        await asyncio.sleep(LONG_S)
        return engine

    engine = run_virtual(run())
    assert engine.closed == (1 if engine.pulls or engine.closed else 0)
    assert ended == ["end"]


@settings(max_examples=100, deadline=None)
@given(names=ANY, chunks=STREAMS, apart_s=st.sampled_from([0.0, 0.5, 1.0, 2.5]))
def test_streams_of_the_same_values_share_nothing(
    names: list[str], chunks: list[Any], apart_s: float
) -> None:
    """Two streams at once, of the very same operators, each give what one gives alone."""
    operators = made(names)

    async def one() -> Seen:
        return await collect(fuse(Engine(fresh(chunks), every_s=1.0)(), operators))

    async def run() -> tuple[Seen, Seen, Seen]:
        alone = await one()
        first = asyncio.create_task(one())
        await asyncio.sleep(apart_s)
        second = await one()
        both = await first, second
        await asyncio.sleep(LONG_S)
        return alone, *both

    alone, first, second = run_virtual(run())
    assert first == second == alone
