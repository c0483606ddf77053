"""`operators.deadlines`."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators import (
    DeadlineExpired,
    FirstTokenTimeout,
    IdleTimeout,
    TotalTimeout,
    deadlines,
    fuse,
)
from rx_backend.testing import assert_marbles, run_virtual
from tests.operators._help import (
    LETTERS,
    Bare,
    Chunk,
    Engine,
    Seen,
    collect,
    handshake,
    now,
    terminal,
    token,
)
from tests.operators._timed import Event, consume


@pytest.mark.parametrize(
    ("options", "source", "result", "error"),
    [
        pytest.param({"first_token_s": 3}, "-----", "---#", FirstTokenTimeout, id="never"),
        pytest.param({"first_token_s": 3}, "-h-h-h", "-h-(h#)", FirstTokenTimeout, id="handshakes"),
        pytest.param(
            {"first_token_s": 3}, "-h-a----b--|", "-h-a----b--|", None, id="first-in-time"
        ),
        pytest.param({"idle_s": 2}, "---h---a--b", "---h---a-#", IdleTimeout, id="idle-from-first"),
        pytest.param({"idle_s": 3}, "-a--h--b---", "-a--h--b--#", IdleTimeout, id="each-re-arms"),
        pytest.param({"idle_s": 3}, "-a-T", "-a-T", None, id="idle-after-the-terminal"),
        pytest.param({"total_s": 5}, "-a-T", "-a-T", None, id="total-after-the-terminal"),
        pytest.param({"total_s": 5}, "-a-b-c-d", "-a-b-(c#)", TotalTimeout, id="total"),
        pytest.param({"total_s": 5}, "-----T", "-----T", None, id="total-and-terminal-at-once"),
        pytest.param({"total_s": 5}, "-a-b-|", "-a-b-|", None, id="total-and-end-at-once"),
        pytest.param(
            {"total_s": 5, "first_token_s": 2}, "---", "--#", FirstTokenTimeout, id="both"
        ),
        pytest.param({"idle_s": 3}, "-|", "-|", None, id="empty"),
        pytest.param({"idle_s": 3}, "-a-b---", "-a-b-!", None, id="early-dispose"),
    ],
)
def test_which_deadline_passes_when(
    options: dict[str, Any], source: str, result: str, error: type[Exception] | None
) -> None:
    """
    Each deadline counts from where it says.

    An item in the iteration of the expiry still comes.
    """
    assert_marbles(
        deadlines(**options), source=source, result=result, values=LETTERS, result_error=error
    )


@pytest.mark.parametrize("retry", [False, True])
@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        (
            {"first_token_s": 0.5},
            FirstTokenTimeout,
            "no first token within 0.5 s (first_token_s), tokens so far: 0",
        ),
        ({"idle_s": 2}, IdleTimeout, "no item for 2 s (idle_s), tokens so far: 5"),
        ({"total_s": 60}, TotalTimeout, "no end within 60 s (total_s), tokens so far: 5"),
    ],
)
def test_the_error_names_the_deadline_and_the_tokens_so_far(
    options: dict[str, Any], kind: type[DeadlineExpired], text: str, retry: bool
) -> None:
    """Deadline, length, tokens and whether it may be retried; also through a pickle."""

    async def run() -> Seen:
        engine = Engine([token(1, 2), handshake(), token(3, 4, 5)], every_s=1.0, ends=False)
        return await collect(fuse(engine(), [deadlines(**options, retry=retry)]))

    error = run_virtual(run()).error
    assert isinstance(error, TimeoutError)
    for same in (error, pickle.loads(pickle.dumps(error))):
        assert type(same) is kind
        assert (str(same), same.retry) == (text, retry)


def told(callback: Callable[[], object]) -> Any:
    """Return the scope of a request whose stop calls *callback*."""
    return SimpleNamespace(stop=callback, answers=1)


class Around:
    """An item around a chunk."""

    def __init__(self, data: Chunk) -> None:
        self.data = data


@pytest.mark.rows("E2")
@pytest.mark.parametrize("make", [asdict, Around])
async def test_chunks_are_recognized_in_any_form(make: Callable[[Chunk], Any]) -> None:
    """Mappings of the shape of a chunk, and items around a chunk, are as good as chunks."""
    chunks = [make(handshake()), make(token(1, 2)), make(handshake())]
    engine = Engine(chunks, every_s=2.0, ends=False)
    seen = await collect(fuse(engine(), [deadlines(first_token_s=5, idle_s=3)]))
    assert seen == Seen(chunks, repr(IdleTimeout(3, tokens=2)))
    ended = Engine([*chunks, make(terminal())], every_s=2.0, ends=False)
    seen = await collect(fuse(ended(), [deadlines(first_token_s=5, idle_s=3)]))
    assert seen.end == "open"


@pytest.mark.rows("S9")
async def test_no_deadline_applies_to_an_engine_that_has_ended() -> None:
    """One that has ended without a terminal may take its time to clean up."""
    engine = Bare([token(1)], closing_s=5.0)
    assert await collect(fuse(engine, [deadlines(idle_s=3)])) == Seen([token(1)], "completed")


async def test_the_request_is_stopped_before_the_engine_is_closed() -> None:
    """The error comes when an engine has finished its clean-up."""
    engine = Engine(ends=False, closing_s=3.0)
    expired = deadlines(first_token_s=5, scope=told(lambda: engine.journal.append("stopped")))
    seen = await collect(fuse(engine(), [expired]))
    assert seen.end == repr(FirstTokenTimeout(5, tokens=0))
    assert engine.journal == ["stopped", "closed"]
    assert now() == 8.0


async def test_a_stream_needs_few_timers(timers: list[float]) -> None:
    """Timers are set as time passes, not as tokens come."""
    engine = Engine([token(1)] * 1000, every_s=0.01)
    seen = await collect(fuse(engine(), [deadlines(first_token_s=5, idle_s=2, total_s=60)]))
    assert len(seen.items) == 1000
    # A thousand are the engine's own.
    assert len(timers) < 1010


# Arrivals against deadlines against a consumer of its own pace, and drops.


def expected(
    steps: Sequence[tuple[int, int]],
    pauses: Sequence[int],
    limits: tuple[int, int, float],
    drop: float,
) -> list[Event]:
    """Return what must be seen: items, the expiry and the consumer's end, each with its time."""
    first_token_s, idle_s, total_s = limits
    seen: list[Event] = []
    time, tokens = 0.0, 0
    allowed: float = first_token_s
    for number, (gap, size) in enumerate(steps):
        arrival = time + gap
        silent = time + allowed
        expiry = min(silent, total_s)
        if expiry < arrival:
            kind = "total" if total_s < silent else "idle" if tokens else "first"
            seen += [(expiry, "expired"), (max(time, expiry), kind)]
            break
        seen.append((arrival, f"item {size}"))
        tokens += size
        allowed = idle_s if tokens else allowed - gap
        time = arrival + pauses[number % len(pauses)]
        if total_s < time:
            seen += [(total_s, "expired"), (time, "total")]
            break
    else:
        seen.append((time, "end"))
    return [event for event in seen if event[0] < drop]


KINDS: dict[type[DeadlineExpired], str] = {
    FirstTokenTimeout: "first",
    IdleTimeout: "idle",
    TotalTimeout: "total",
}


@given(
    steps=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2)), max_size=8),
    pauses=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    limits=st.tuples(
        st.integers(1, 6), st.integers(1, 5), st.integers(0, 30).map(lambda number: number + 0.5)
    ),
    drop=st.integers(0, 40).map(lambda number: number + 0.25),
)
def test_every_interleaving(
    steps: list[tuple[int, int]],
    pauses: list[int],
    limits: tuple[int, int, float],
    drop: float,
) -> None:
    """Whatever comes when, what is seen and when is what the rules above say."""
    seen: list[Event] = []
    closed: list[float] = []

    async def engine() -> AsyncGenerator[Chunk]:
        try:
            for gap, size in steps:
                await asyncio.sleep(gap)
                yield token(*range(size))
        finally:
            closed.append(now())

    def name(item: Any) -> str:
        if isinstance(item, DeadlineExpired):
            return KINDS[type(item)]
        return f"item {len(item.token_ids)}"

    async def run() -> None:
        first_token_s, idle_s, total_s = limits
        watched = deadlines(
            first_token_s=first_token_s,
            idle_s=idle_s,
            total_s=total_s,
            scope=told(lambda: seen.append((now(), "expired"))),
        )
        await consume(fuse(engine(), [watched]), pauses, drop, name, seen)

    run_virtual(run())
    assert seen == expected(steps, pauses, limits, drop)
    expiry = [time for time, what in seen if what == "expired"]
    assert len(closed) == 1
    assert closed[0] == (expiry[0] if expiry else closed[0])
