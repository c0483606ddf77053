"""`operators.deferred_abort`: the gate on its own, and the operator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from itertools import permutations
from typing import Any

import pytest
import reactivex
from reactivex import abc
from reactivex.subject import ReplaySubject, Subject

from operators import AbortStep, abort_gate, deferred_abort, fuse
from rx_backend.testing import Marbles
from tests.operators._help import (
    LETTERS,
    Chunk,
    Life,
    collect,
    cue,
    handshake,
    now,
    pushed,
    settle,
    terminal,
    token,
)

MakeLevel = Callable[[], Subject[bool]]

SIGNALS = dict.fromkeys("socx", True)


class Level(Subject[bool]):
    """A signal that stays set; a later subscriber is told while it subscribes."""

    is_set = False

    def on_next(self, value: bool) -> None:
        self.is_set = True
        super().on_next(value)

    def _subscribe_core(
        self, observer: abc.ObserverBase[bool], scheduler: abc.SchedulerBase | None = None
    ) -> abc.DisposableBase:
        if self.is_set:
            observer.on_next(True)
        return super()._subscribe_core(observer, scheduler)


def replay() -> Subject[bool]:
    """Return a signal that stays set; a later subscriber is told by way of the current thread's scheduler."""
    return ReplaySubject(1)


@pytest.fixture(params=[Level, replay])
def level(request: pytest.FixtureRequest) -> MakeLevel:
    """Make signals that stay set, of either kind."""
    return request.param


def setter(signal: Subject[bool]) -> Callable[[], None]:
    return lambda: signal.on_next(True)


@pytest.mark.rows("A8")
class TestAbortGate:
    """The composition of take-until and skip-until."""

    @pytest.mark.rows("A2", "A4", "A5")
    @pytest.mark.parametrize(
        ("stop", "opened", "closed", "result"),
        [
            pytest.param("-s----", "---o--", "------", "---(x|)", id="stop-first"),
            pytest.param("---s--", "-o----", "------", "---(x|)", id="open-first"),
            pytest.param("--s---", "--o---", "------", "--(x|)", id="in-one-turn"),
            pytest.param("-s-s-s", "--o-o-", "------", "--(x|)", id="many-signals"),
            pytest.param("-(s|)-", "---(o|)", "------", "---(x|)", id="signals-that-complete"),
            pytest.param("-s----", "-----o", "---c--", "---|", id="closed-between"),
            pytest.param("---s--", "----o-", "-c----", "-|", id="closed-first"),
            pytest.param("---s--", "-o----", "----c-", "---(x|)", id="closed-after"),
            pytest.param("-s----", "---o--", "---c--", "---(x|)", id="closed-in-the-turn-of-open"),
            pytest.param("-s----", "---o--", "-|", "---(x|)", id="closed-never-comes"),
            pytest.param("-s-s--", "------", "------", "------", id="never-open"),
            pytest.param("------", "-o-o--", "------", "------", id="never-stopped"),
            pytest.param("-|", "---o--", "------", "------", id="stop-completes"),
            pytest.param("---s--", "-|", "------", "------", id="open-completes"),
            pytest.param("-#", "---o--", "------", "-#", id="stop-fails"),
            pytest.param("---s--", "-#", "------", "-#", id="open-fails"),
            pytest.param("---s--", "---o--", "-#", "-#", id="closed-fails"),
            pytest.param("-s----", "---o--", "------", "--!", id="dropped"),
        ],
    )
    def test_it_emits_after_both_stop_and_opened(
        self, stop: str, opened: str, closed: str, result: str
    ) -> None:
        """It emits once, when the second of the two comes, and never once it is closed."""
        test = Marbles(SIGNALS)
        test.expect(abort_gate(test.hot(stop), test.hot(opened), test.hot(closed)), result)

    @pytest.mark.rows("A2", "A6")
    @pytest.mark.parametrize(
        "order",
        [*permutations(["stop", "opened"]), *permutations(["stop", "opened", "closed"])],
        ids="-".join,
    )
    def test_signals_that_are_already_set_count(
        self, order: tuple[str, ...], level: MakeLevel
    ) -> None:
        """Signals that replay open it at once, whichever was set first; a closing one wins."""
        levels = {name: level() for name in ("stop", "opened", "closed")}
        for name in order:
            levels[name].on_next(True)
        assert _told(*levels.values()) == (["|"] if "closed" in order else [True, "|"])

    def test_timers_in_its_signals_use_the_scheduler(self) -> None:
        """The scheduler of the subscription reaches all three signals."""
        timer = reactivex.timer(2.0), reactivex.timer(3.0), reactivex.timer(4.0)
        Marbles({"x": 0}).expect(abort_gate(*timer), "---(x|)")
        late = reactivex.timer(2.0), reactivex.timer(4.0), reactivex.timer(3.0)
        Marbles().expect(abort_gate(*late), "---|")


class TestDeferredAbort:
    """The operator."""

    @pytest.mark.rows("A2", "A3", "A4", "A5", "A6")
    @pytest.mark.parametrize(
        ("defer", "source", "stop", "result", "abort"),
        [
            pytest.param(True, "------", "-s----", "------", "", id="never"),
            pytest.param(True, "---|", "-s----", "---|", "", id="empty"),
            pytest.param(True, "---a|", "-s----", "---a|", "---!", id="one"),
            pytest.param(True, "-h-a-b-T|", "--s---", "-h-a-b-T|", "---!", id="many"),
            pytest.param(
                True, "-h-a-b-T|", "----s-", "-h-a-b-T|", "----!", id="after-the-first-token"
            ),
            pytest.param(True, "-h-h-T|", "--s---", "-h-h-T|", "", id="no-token"),
            pytest.param(
                True, "-h-U|", "--s---", "-h-U|", "---!", id="terminal-with-the-first-token"
            ),
            pytest.param(True, "-h-#", "--s---", "-h-#", "", id="source-error-before"),
            pytest.param(True, "-a-#", "--s---", "-a-#", "--!", id="source-error-after"),
            pytest.param(True, "-a-b", "--s---", "-a-b", "--!", id="no-end"),
            pytest.param(True, "-h-a-b|", "-s----", "-h!", "", id="early-dispose"),
            pytest.param(True, "-h-a-b|", "-s----", "-h-(a!)", "---!", id="dispose-inside"),
            pytest.param(True, "-h-a-b|", "-s-s-s", "-h-a-b|", "---!", id="many-signals"),
            pytest.param(True, "-a-b|", "-----s", "-a-b|", "", id="signal-after-the-end"),
            pytest.param(True, "-a-#", "-----s", "-a-#", "", id="signal-after-the-error"),
            pytest.param(True, "-a-b-c", "-----s", "-a-!", "", id="signal-after-the-drop"),
            pytest.param(True, "-a-b-|", "------", "-a-b-|", "", id="no-signal"),
            pytest.param(False, "------", "-s----", "------", "-!", id="at-once-never"),
            pytest.param(False, "---|", "-s----", "---|", "-!", id="at-once-empty"),
            pytest.param(False, "-h-a-T|", "s-----", "-h-a-T|", "!", id="at-once-from-the-start"),
            pytest.param(False, "-h-a-T|", "--s-s-", "-h-a-T|", "--!", id="at-once-many-signals"),
            pytest.param(False, "-a-T|", "-----s", "-a-T|", "", id="at-once-signal-after-the-end"),
            pytest.param(False, "-a-#", "-----s", "-a-#", "", id="at-once-signal-after-the-error"),
            pytest.param(False, "-a-b-|", "---s--", "-a!", "", id="at-once-signal-after-the-drop"),
        ],
    )
    def test_when_the_abort_is_called(
        self, defer: bool, source: str, stop: str, result: str, abort: str
    ) -> None:
        """Once: with the first token at the earliest, or in the moment of the signal; chunks pass."""
        test = Marbles({**LETTERS, "s": True})
        aborts: list[int] = []
        signal = test.hot(stop)
        gate = deferred_abort(lambda: aborts.append(round(test.clock())), stop=signal, defer=defer)
        test.expect(test.cold(source).pipe(gate), result)
        assert aborts == [place for place, sign in enumerate(abort) if sign == "!"]

    @pytest.mark.rows("A2", "A4", "S1")
    def test_the_abort_comes_before_the_first_token_is_emitted(self, life: Life) -> None:
        """The stop waits through empty chunks; the stream continues, its chunks unchanged."""
        journal: list[str] = []
        stop: Subject[bool] = Subject()
        chunks = [handshake(), handshake(), token(1), token(2), terminal()]
        seen = life(
            chunks,
            cue({1: setter(stop)}),
            deferred_abort(lambda: journal.append("abort"), stop=stop),
            cue({n: lambda n=n: journal.append(f"chunk {n}") for n in range(5)}),
        )
        assert journal == ["chunk 0", "chunk 1", "abort", *(f"chunk {n}" for n in (2, 3, 4))]
        assert list(map(id, seen.items)) == list(map(id, chunks))

    @pytest.mark.rows("A5")
    @pytest.mark.parametrize("how", [{}, {"error": LookupError()}], ids=str)
    def test_the_streams_own_end_closes_the_gate_at_once(
        self, life: Life, how: dict[str, Any]
    ) -> None:
        """A stream that ends or fails closes its gate at once, and one without a signal too."""
        stop = Level()
        later: list[Callable[[], None]] = []
        gate = deferred_abort(_never, stop=stop, call_soon=later.append)
        life([handshake()], cue({0: setter(stop)}), gate, **how)
        life([handshake()], deferred_abort(_never, stop=Subject(), call_soon=later.append), take=1)
        assert later == []

    @pytest.mark.rows("A4", "A5")
    @pytest.mark.parametrize("waits", [True, False])
    @pytest.mark.parametrize("is_stopped", [True, False])
    async def test_a_stop_while_the_engine_unwinds(self, is_stopped: bool, waits: bool) -> None:
        """A first token that it notifies only after the drop triggers no abort, stopped before or not."""
        stop, notified, steps = Level(), Level(), list[AbortStep]()
        if is_stopped:
            stop.on_next(True)

        async def engine() -> AsyncGenerator[Chunk]:
            yield handshake()
            try:
                await asyncio.Event().wait()
            finally:
                stop.on_next(True)
                if waits:
                    await asyncio.sleep(1.0)
                notified.on_next(True)

        gate = deferred_abort(
            _never,
            stop=stop,
            notified=notified,
            call_soon=asyncio.get_running_loop().call_soon,
            on_step=steps.append,
        )
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                async for _ in fuse(engine(), [gate]):
                    pass
        await settle()
        assert steps == [AbortStep.REQUESTED, AbortStep.SUPPRESSED]

    @pytest.mark.rows("A2", "S6")
    @pytest.mark.parametrize("cleaning_up_s", [0.0, 1.0])
    async def test_a_cancellation_by_the_engine_keeps_the_gate(self, cleaning_up_s: float) -> None:
        """The stream survives it, and the first token after it triggers the abort."""
        stop, aborts = Level(), list[float]()

        async def engine() -> AsyncGenerator[Chunk]:
            yield handshake()
            stop.on_next(True)
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    try:
                        await asyncio.Event().wait()
                    finally:
                        if cleaning_up_s:
                            await asyncio.sleep(cleaning_up_s)
            await asyncio.sleep(1.0)
            yield token(1)

        gate = deferred_abort(
            lambda: aborts.append(now()),
            stop=stop,
            call_soon=asyncio.get_running_loop().call_soon,
        )
        assert (await collect(fuse(engine(), [gate]))).items == [handshake(), token(1)]
        assert aborts == [2.0 + cleaning_up_s]

    @pytest.mark.rows("A5", "S7")
    def test_a_stream_can_outlive_its_loop(self) -> None:
        """Where there is no further iteration, the gate closes at once."""
        stop, steps = Level(), list[AbortStep]()

        def refuse(_: object) -> None:
            raise RuntimeError("Event loop is closed")

        gate = deferred_abort(_never, stop=stop, call_soon=refuse, on_step=steps.append)
        pushed([handshake()], cue({0: setter(stop)}), gate, take=1)
        assert steps == [AbortStep.REQUESTED, AbortStep.SUPPRESSED]

    @pytest.mark.rows("A6")
    @pytest.mark.parametrize(
        "how", [{}, {"error": LookupError()}, {"take": 1}, {"ends": False}], ids=str
    )
    @pytest.mark.parametrize("stopped", [True, False])
    def test_the_signals_have_no_listeners_afterwards(
        self, life: Life, stopped: bool, how: dict[str, Any]
    ) -> None:
        """Stop and notice are left when the stream is over, so that they don't keep it."""
        stop, notified = Subject[bool](), Subject[bool]()
        gate = deferred_abort(_never, stop=stop, notified=notified)
        life([handshake()], cue({0: setter(stop)} if stopped else {}), gate, **how)
        assert (stop.observers, notified.observers) == ([], [])


def _never() -> None:
    raise AssertionError("the abort was made")


def _told(*signals: Subject[bool]) -> list[object]:
    told: list[object] = []
    abort_gate(*signals).subscribe(told.append, on_completed=lambda: told.append("|"))
    return told
