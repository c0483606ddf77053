"""A second stream when the first is slow to begin; the one that answers goes on."""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest
import reactivex
from hypothesis import given
from hypothesis import strategies as st

from operators import HedgeOutcome, fuse, hedge, map_async
from operators.authoring import FusedRun
from rx_backend.testing import run_virtual
from tests.operators._help import (
    LONG_S,
    Chunk,
    Engine,
    Seen,
    collect,
    handshake,
    terminal,
    token,
    virtual,
)

A, B, C, END = token(1), token(2), token(3), terminal()


def tasks() -> int:
    return len(asyncio.all_tasks())


@pytest.mark.rows("S4")
@virtual
async def test_a_first_stream_that_answers_in_time_is_left_alone() -> None:
    """No second one is asked for, no task is made, and each pull of the consumer is one."""
    first = Engine([handshake(), A, B, END], every_s=1.0)
    outcomes: list[HedgeOutcome] = []
    stream = fuse(first(), [hedge(2.5, lambda: pytest.fail("asked"), on_outcome=outcomes.append)])
    before = tasks()
    for pulls in range(1, 5):
        await anext(stream)
        assert (first.pulls, tasks()) == (pulls, before)
        await asyncio.sleep(5)
    assert [item async for item in stream] == []
    assert (first.closed, outcomes) == (1, [])


@pytest.mark.rows("S4")
@virtual
async def test_the_second_stream_wins() -> None:
    """Its items follow in order; the first one is aborted, then closed; nothing is pulled ahead."""
    journal: list[str] = []
    first = Engine([handshake(), A, END], every_s=3.5, journal=journal)
    second = Engine([handshake(), B, C, END], every_s=1.0)
    outcomes: list[HedgeOutcome] = []
    racing = hedge(
        4,
        second,
        abort_first=lambda: journal.append("abort"),
        abort_second=lambda: pytest.fail("the winner was aborted"),
        on_outcome=outcomes.append,
    )
    stream = fuse(first(), [racing])
    assert await anext(stream) == handshake()
    before = tasks()
    assert await anext(stream) == handshake()
    assert asyncio.get_running_loop().time() == 6.0  # not when its handshake came
    assert journal == ["pull", "abort", "closed"]
    assert (second.pulls, tasks()) == (2, before)
    await asyncio.sleep(10)
    assert [await anext(stream) for _ in range(2)] == [B, C]
    assert (second.pulls, tasks()) == (3, before)
    assert await anext(stream) == END
    await stream.aclose()
    assert (first.closed, second.closed) == (1, 1)
    assert outcomes == [HedgeOutcome("second", 6.0)]


@virtual
async def test_the_second_stream_wins_while_nobody_pulls() -> None:
    """The first one is aborted when it has lost, and what it gives later is not seen."""
    first, second = Engine([handshake()] * 2 + [A], every_s=1.0), Engine([B, END], every_s=1.0)
    aborted: list[float] = []
    clock = asyncio.get_running_loop().time
    stream = fuse(first(), [hedge(1.5, second, abort_first=lambda: aborted.append(clock()))])
    assert [await anext(stream) for _ in range(2)] == [handshake()] * 2
    await asyncio.sleep(10)
    assert aborted == [2.5]
    assert [item async for item in stream] == [B, END]
    assert (first.closed, first.pulls, second.closed) == (1, 2, 1)


@virtual
async def test_the_first_stream_wins_late() -> None:
    """The second one is aborted, then closed; its clean-up holds nothing up."""
    journal: list[str] = []
    first = Engine([A, B, END], every_s=3.0)
    second = Engine([handshake(), C], every_s=2.5, closing_s=60, journal=journal)
    outcomes: list[HedgeOutcome] = []
    racing = hedge(
        1,
        second,
        abort_first=lambda: pytest.fail("the winner was aborted"),
        abort_second=lambda: journal.append("abort"),
        on_outcome=outcomes.append,
    )
    stream = fuse(first(), [racing])
    assert [await anext(stream) for _ in range(3)] == [A, B, END]
    assert asyncio.get_running_loop().time() == 9.0
    await stream.aclose()
    assert journal == ["abort", "closed"]
    assert outcomes == [HedgeOutcome("first", 3.0)]


async def failing_setup() -> AsyncGenerator[Any]:
    await asyncio.sleep(1)
    raise LookupError("no engine")


GONE = ConnectionError("first")


@pytest.mark.parametrize(
    ("first", "second", "seen", "winner"),
    [
        pytest.param(
            Engine([handshake()], error=GONE, every_s=3.0),
            Engine([B, END], every_s=5.0),
            Seen([handshake(), B, END], "completed"),
            "second",
            id="first-fails",
        ),
        pytest.param(
            Engine([terminal(reason="error: boom")], every_s=3.0),
            Engine([B, END], every_s=5.0),
            Seen([B, END], "completed"),
            "second",
            id="first-says-error",
        ),
        pytest.param(
            Engine([handshake()], every_s=3.0),
            Engine([B, END], every_s=5.0),
            Seen([handshake(), B, END], "completed"),
            "second",
            id="first-ends",
        ),
        pytest.param(
            Engine([A, END], every_s=5.0),
            Engine([handshake()], error=ValueError("second"), every_s=1.0),
            Seen([A, END], "completed"),
            "first",
            id="second-fails",
        ),
        pytest.param(
            Engine([A, END], every_s=5.0),
            failing_setup,
            Seen([A, END], "completed"),
            "first",
            id="second-cannot-be-opened",
        ),
        pytest.param(
            Engine([A, END], every_s=5.0),
            lambda: 7,
            Seen([A, END], "completed"),
            "first",
            id="second-is-no-stream",
        ),
        pytest.param(
            Engine([handshake()], error=GONE, every_s=3.0),
            Engine(error=ValueError("second"), every_s=1.0),
            Seen([handshake()], repr(GONE)),
            None,
            id="both-fail",
        ),
        pytest.param(
            Engine([terminal(reason="error: boom")], every_s=3.0),
            Engine([handshake()], every_s=5.0),
            Seen([terminal(reason="error: boom")], "completed"),
            None,
            id="both-fail-the-first-by-a-terminal",
        ),
        pytest.param(
            Engine([A], error=GONE, every_s=5.0),
            Engine(ends=False),
            Seen([A], repr(GONE)),
            "first",
            id="winner-fails",
        ),
        pytest.param(
            Engine([terminal(reason="cancelled")], every_s=5.0),
            Engine(ends=False),
            Seen([terminal(reason="cancelled")], "completed"),
            "first",
            id="a-terminal-answers",
        ),
    ],
)
def test_failures(first: Engine, second: Callable[[], Any], seen: Seen, winner: str | None) -> None:
    """Who is left goes on; when nobody is, the stream ends as the first one did."""
    outcomes: list[HedgeOutcome] = []

    async def run() -> Seen:
        return await collect(fuse(first(), [hedge(2, second, on_outcome=outcomes.append)]))

    assert run_virtual(run()) == seen
    assert [outcome.winner for outcome in outcomes] == [winner]
    assert first.closed == 1
    assert not isinstance(second, Engine) or second.closed == 1


@virtual
async def test_a_second_stream_that_says_error_is_closed_then() -> None:
    """It is not kept for as long as the first one goes on."""
    second = Engine([terminal(reason="error: boom")], ends=False)
    stream = fuse(Engine([A, END], every_s=5.0)(), [hedge(1, second)])
    pull = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(2)
    assert second.closed == 1
    assert await pull == A
    await stream.aclose()


@virtual
async def test_a_failure_before_its_time_passes() -> None:
    """No second stream was started, and none is for a failure."""
    first = Engine(error=GONE)
    seen = await collect(fuse(first(), [hedge(1, lambda: pytest.fail("asked"))]))
    assert seen.error is GONE


@virtual
async def test_a_stopped_request_is_not_hedged() -> None:
    """The question is asked when the time is up."""
    first = Engine([A, END], every_s=5.0)
    racing = hedge(2, lambda: pytest.fail("asked"), is_stopped=lambda: True)
    assert (await collect(fuse(first(), [racing]))).items == [A, END]


@virtual
async def test_what_the_callbacks_raise_disturbs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the race goes its way."""

    def fail(*_: object) -> None:
        raise LookupError

    second = Engine([B, END])
    racing = hedge(1, second, abort_first=fail, on_outcome=fail)
    assert (await collect(fuse(Engine(ends=False)(), [racing]))).items == [B, END]
    assert len(caplog.records) == 2


@virtual
async def test_a_run_and_an_observable_are_streams_too() -> None:
    """Also behind something that is awaited."""

    async def run() -> FusedRun[Any]:
        return fuse(Engine([B, END])(), [])

    for second in (run, lambda: reactivex.of(B, END), lambda: fuse(Engine([B, END])(), [])):
        assert (await collect(fuse(Engine(ends=False)(), [hedge(1, second)]))).items == [B, END]


@virtual
async def test_the_second_stream_runs_in_one_context() -> None:
    """What it sets before its answer it finds, and takes back, behind it; nobody else sees it."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="outside")
    found: list[str] = []

    async def second() -> AsyncGenerator[Any]:
        undo = variable.set("inside")
        try:
            yield B
            found.append(variable.get())
            yield END
        finally:
            variable.reset(undo)

    async for _ in fuse(Engine(ends=False)(), [hedge(1, second)]):
        assert variable.get() == "outside"
    assert found == ["inside"]


@virtual
async def test_chunks_behind_are_those_of_one_stream() -> None:
    """The last item is known to be the last, so that operators behind complete with it (row P6a)."""

    async def itself(item: Any) -> Any:
        return item

    second = Engine([B])
    stream = fuse(Engine(ends=False)(), [hedge(1, second), map_async(itself)])
    assert await anext(stream) == B
    assert [item async for item in stream] == []


# The same by a model. The first stream's things happen at whole seconds, the second's a third of a
# second later, the second starts at half, and the drop comes at 0.7: no two at the same time.

Script = Sequence[tuple[int, str]]
AFTER = 0.5
THIRD = 1 / 3 - AFTER
TELLS = {"T": terminal(), "!": terminal(reason="error")}


class Player:
    """Plays a script: how many seconds until what."""

    def __init__(self, script: Script, last: str, offset_s: float, first_id: int) -> None:
        self.script = script
        self.last = last
        self.offset_s = offset_s
        self.first_id = first_id
        self.opened = self.closed = self.aborted = 0

    def chunk(self, place: int, what: str) -> Chunk:
        if what in TELLS:
            return TELLS[what]
        return token(self.first_id + place) if what == "t" else handshake()

    def plan(self, begun: float) -> list[tuple[float, str, Chunk]]:
        """When what comes; the last is the end."""
        found: list[tuple[float, str, Chunk]] = []
        time = begun + self.offset_s
        for place, (wait_s, what) in enumerate([*self.script, (1, self.last)]):
            time += wait_s
            found.append((time, what, self.chunk(place, what)))
        return found

    def abort(self) -> None:
        assert not self.closed
        self.aborted += 1

    async def __call__(self) -> AsyncGenerator[Chunk]:
        self.opened += 1
        try:
            await asyncio.sleep(self.offset_s)
            for place, (wait_s, what) in enumerate([*self.script, (1, self.last)]):
                await asyncio.sleep(wait_s)
                if what == "#":
                    raise GONE.with_traceback(None)
                if what == "|":
                    return
                if what == "?":
                    await asyncio.Event().wait()
                yield self.chunk(place, what)
        finally:
            self.closed += 1


def expected(
    first: Player, second: Player, after: float, drop: float
) -> tuple[list[Chunk], bool, int, int]:
    """What comes out before *drop*, whether the second began, and how often each is aborted."""

    def answer(plan: list[tuple[float, str, Chunk]]) -> tuple[float, float]:
        """When it answers, and when it is out without an answer."""
        time, what, _ = next(entry for entry in plan if entry[1] != "h")
        if what in {"t", "T"}:
            return time, math.inf
        return math.inf, math.inf if what == "?" else time

    ours, theirs = first.plan(0), second.plan(after)
    (first_at, first_out), (second_at, second_out) = answer(ours), answer(theirs)
    if min(first_at, first_out) < after:
        given, begins, aborts = ours, False, (0, 0)
    elif second_at < first_at:
        given = [entry for entry in ours if entry[0] < min(second_at, first_out)]
        given += [(max(time, second_at), what, chunk) for time, what, chunk in theirs]
        begins, aborts = True, (int(first_out > second_at and second_at < drop), 0)
    else:
        # Where the first fails, and the second does too, that is told when both are out.
        out = max(first_out, second_out) if first_at == math.inf else -math.inf
        given = [(t if what == "h" else max(t, out), what, chunk) for t, what, chunk in ours]
        begins, aborts = True, (0, int(first_at < second_out and first_at < drop))
    items = [chunk for time, what, chunk in given if time < drop and what in "htT!"]
    return items, begins and after < drop, *aborts


scripts = st.lists(st.tuples(st.integers(1, 4), st.sampled_from("hht")), max_size=3)
ends = st.sampled_from("TTT!#|?")


@pytest.mark.rows("S1", "S7")
@given(
    ours=scripts,
    our_end=ends,
    theirs=scripts,
    their_end=ends,
    after_s=st.integers(0, 6),
    drop_s=st.integers(0, 20) | st.just(1000),
    by_cancel=st.booleans(),
)
def test_any_race(  # noqa: PLR0917
    ours: Script,
    our_end: str,
    theirs: Script,
    their_end: str,
    after_s: int,
    drop_s: int,
    by_cancel: bool,
) -> None:
    """Items, aborts and closings are the model's, wherever the stream is dropped."""
    first, second = Player(ours, our_end, 0.0, 10), Player(theirs, their_end, THIRD + AFTER, 20)
    items: list[Chunk] = []

    async def consume(stream: FusedRun[Chunk]) -> None:
        with suppress(ConnectionError):
            async for item in stream:
                items.append(item)  # noqa: PERF401 - those before a failure too

    async def run() -> None:
        racing = hedge(after_s + AFTER, second, abort_first=first.abort, abort_second=second.abort)
        stream = fuse(first(), [racing])
        task = asyncio.create_task(consume(stream))
        await asyncio.sleep(drop_s + 0.7)
        if by_cancel:
            task.cancel()
        else:
            stream.close()
        await asyncio.wait([task])
        await stream.aclose()
        assert tasks() == 1

    run_virtual(run())
    given_items, begins, first_aborts, second_aborts = expected(
        first, second, after_s + AFTER, drop_s + 0.7
    )
    assert items == given_items
    assert (first.opened, first.closed) == (1, 1)
    assert second.opened == second.closed == begins
    assert (first.aborted, second.aborted) == (first_aborts, second_aborts)


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        ((-1, Engine()), {}, "hedge: after_s: expected a number of seconds, 0 or more, got -1"),
        ((1, None), {}, "hedge: second: expected a function, got None"),
        ((1, Engine()), {"abort_first": 7}, "hedge: abort_first: expected a function, got 7"),
    ],
)
def test_bad_arguments(arguments: tuple[Any, ...], options: dict[str, Any], error: str) -> None:
    """They are named when the operator is made."""
    with pytest.raises((TypeError, ValueError), match=error):
        hedge(*arguments, **options)


@pytest.mark.rows("S7")
@virtual
async def test_losing_the_last_reference_in_a_race() -> None:
    """It is a drop of both, also while the second one is being pulled."""
    first, second = Engine([handshake()] * 3, every_s=1.0), Engine([B], every_s=60.0)
    owner = [fuse(first(), [hedge(1.5, second)])]
    for _ in range(2):
        await anext(owner[0])
    assert tasks() == 2
    owner.clear()
    await asyncio.sleep(1)
    assert (first.closed, second.closed, tasks()) == (1, 1, 1)


@virtual
async def test_the_consumers_own_time_does_not_count() -> None:
    """Neither before its first pull, nor between two pulls."""
    clock = asyncio.get_running_loop().time
    second = Engine([B, END])
    stream = fuse(Engine([handshake()], ends=False, every_s=1.0)(), [hedge(3, second)])
    await asyncio.sleep(LONG_S)
    assert await anext(stream) == handshake()
    await asyncio.sleep(LONG_S)
    assert second.pulls == 0
    before = clock()
    assert await anext(stream) == B
    assert clock() == pytest.approx(before + 2)
    await stream.aclose()
