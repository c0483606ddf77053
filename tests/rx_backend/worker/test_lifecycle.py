"""A worker's life in virtual time, with a runtime that only keeps a diary."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rx_backend import (
    BackendError,
    CannotConnect,
    DisaggregationMode,
    Disconnected,
    EngineConfig,
    EngineShutdown,
    InvalidArgument,
    ResponseTimeout,
    Unknown,
)
from rx_backend.dynamo import Handler
from rx_backend.worker import Lifecycle, RequestGate, Shutdown, ShutdownTimes
from tests.engines import virtual
from tests.logs import capture_logs

TIMES = ShutdownTimes(grace_s=5, drain_s=30, unwind_s=3, settle_s=20, cleanup_s=9, poll_s=1)


class FakeEndpoint:
    """A place in a runtime; everything is written to one diary, with the time in seconds."""

    worker_id = 7

    def __init__(self) -> None:
        self.diary: list[tuple[float, str]] = []
        self.lost = asyncio.Event()
        self.fails_at: str | None = None
        self.paths: list[str] = []
        self.listed = True
        self.restored_at = 0.0
        self.probes: list[Mapping[str, Any] | None] = []

    def note(self, what: str) -> None:
        self.diary.append((asyncio.get_running_loop().time(), what))
        if what == self.fails_at:
            raise CannotConnect(what)

    @property
    def steps(self) -> list[str]:
        return [what for _, what in self.diary]

    async def serve(self, handler: Handler, probe: Mapping[str, Any] | None) -> None:
        self.note("serve")
        self.probes.append(probe)
        await self.lost.wait()

    async def reachable(self) -> None:
        self.note("reachable")

    async def register(self, config: EngineConfig, mode: DisaggregationMode, path: str) -> None:
        self.note("register")
        self.paths.append(path)

    def is_listed(self) -> bool:
        return self.listed

    async def restore(self) -> None:
        self.note("restore")
        self.listed = asyncio.get_running_loop().time() >= self.restored_at

    async def leave(self) -> None:
        self.note("leave")

    def shutdown(self) -> None:
        self.lost.set()
        self.note("shutdown")


class Engine:
    """Notes what is asked of it; each step takes the seconds given."""

    def __init__(self, place: FakeEndpoint, **takes: float) -> None:
        self.place = place
        self.takes = takes
        self.quiescent_at = 0.0
        self.model = "m"
        self.lost: Any = None

    async def start(self, worker_id: int) -> EngineConfig:
        await self._step("start")
        return EngineConfig(model=self.model)

    async def cleanup(self) -> None:
        await self._step("cleanup")

    async def drain(self) -> None:
        await self._step("drain")

    async def is_quiescent(self) -> bool:
        self.place.note("is_quiescent")
        return asyncio.get_running_loop().time() >= self.quiescent_at

    async def health_check_payload(self) -> dict[str, Any]:
        return {"token_ids": [1]}

    async def _step(self, name: str) -> None:
        self.place.note(name)
        await asyncio.sleep(self.takes.get(name, 0.0))


class Request:
    """A request in flight for so many seconds; `deaf` ones don't hear that they should stop."""

    def __init__(self, seconds: float, *, deaf: bool = False) -> None:
        self.seconds = seconds
        self.deaf = deaf
        self.stopped = asyncio.Event()
        self.failure: Exception | None = None
        self.items: list[object] = []
        self.error: BaseException | None = None

    def stop_generating(self) -> None:
        if not self.deaf:
            self.stopped.set()

    def fail(self, error: Exception) -> None:
        self.failure = error
        self.stopped.set()

    def check_stopped(self) -> None:
        """It ended by itself where it heard the stop, and else with an error for other workers."""
        assert self.items == ["first"] + ["cancelled"] * (not self.deaf)
        assert isinstance(self.error, EngineShutdown) == self.deaf

    async def send(self, handler: Handler) -> None:
        try:
            async for item in handler(self, self):
                self.items.append(item)
        except Exception as error:
            self.error = error


def handler_inside(gate: RequestGate) -> Handler:
    async def handle(request: Request, context: Request) -> AsyncGenerator[Any]:
        with gate.admit(context, context.fail):
            yield "first"
            try:
                async with asyncio.timeout(request.seconds):
                    await request.stopped.wait()
                if request.failure is not None:
                    raise request.failure
                yield "cancelled"
            except TimeoutError:
                yield "last"

    return handle


class Life:
    """One life: its parts, and a way to live it."""

    def __init__(self, mode: str = "agg", **takes: float) -> None:
        self.place = FakeEndpoint()
        self.engine = Engine(self.place, **takes)
        self.gate = RequestGate(lambda: EngineShutdown("no more"))
        self.handler = handler_inside(self.gate)
        self.shutdown = Shutdown()
        self.ready: list[EngineConfig] = []
        self.mode = DisaggregationMode.parse(mode)
        self.tasks: list[asyncio.Task[None]] = []
        self.over = False

    def at(self, seconds: float, action: Callable[[], object]) -> None:
        asyncio.get_running_loop().call_at(seconds, action)

    def send(self, request: Request) -> None:
        if not self.over:
            self.tasks.append(asyncio.create_task(request.send(self.handler)))

    async def live(self) -> BackendError | None:
        engine: Any = self.engine
        place: Any = self.place
        lifecycle = Lifecycle(
            engine,
            place,
            self.handler,
            self.gate,
            self.shutdown,
            mode=self.mode,
            times=TIMES,
            registration=lambda config: (config, f"/models/{config.model}"),
        )
        try:
            await lifecycle.run(self.ready.append)
        except BackendError as error:
            return error
        finally:
            self.over = True
            await asyncio.gather(*self.tasks)
        return None


@pytest.mark.rows("E1", "E5")
@virtual
async def test_the_steps_come_in_order_and_take_their_time() -> None:
    """Up to the model's registration, and down from discovery to the runtime, each step once."""
    life = Life(start=2, drain=1, cleanup=1)
    life.at(10, life.shutdown.request)
    with capture_logs(logging.WARNING) as logged:
        assert await life.live() is None
    assert logged == []
    assert life.place.diary == [
        (0, "start"),
        (2, "serve"),
        (2, "reachable"),
        (2, "register"),
        (10, "leave"),
        (15, "drain"),
        (16, "cleanup"),
        (17, "shutdown"),
    ]
    assert [config.model for config in life.ready] == ["m"]
    assert life.place.paths == ["/models/m"]
    assert life.place.probes == [{"token_ids": [1]}]


@virtual
async def test_requests_in_flight_finish_and_new_ones_are_refused() -> None:
    """During the grace period requests are still taken; afterwards those in flight go on."""
    life = Life()
    old, late, refused = Request(20), Request(12), Request(1)
    life.at(1, lambda: life.send(old))
    life.at(10, life.shutdown.request)
    life.at(14, lambda: life.send(late))
    life.at(16, lambda: life.send(refused))
    assert await life.live() is None
    assert old.items == late.items == ["first", "last"]
    assert isinstance(refused.error, EngineShutdown)
    assert (26, "drain") in life.place.diary


@pytest.mark.parametrize(("deaf", "cleaned_at"), [(False, 45), (True, 48)])
@virtual
async def test_the_deadline_stops_remaining_requests(*, deaf: bool, cleaned_at: float) -> None:
    """At the deadline the rest is stopped; requests that ignore it are failed, before `cleanup`."""
    life = Life()
    request = Request(1000, deaf=deaf)
    life.at(1, lambda: life.send(request))
    life.at(10, life.shutdown.request)
    assert await life.live() is None
    assert (cleaned_at, "cleanup") in life.place.diary
    request.check_stopped()


@pytest.mark.rows("E5")
@pytest.mark.parametrize(("quiescent_at", "drained_at"), [(18, 18), (1000, 35)])
@virtual
async def test_prefill_waits_until_it_is_quiescent(quiescent_at: float, drained_at: float) -> None:
    """A prefill worker is asked until its transfers are done, or until its time is up."""
    life = Life("prefill")
    life.engine.quiescent_at = quiescent_at
    life.at(10, life.shutdown.request)
    assert await life.live() is None
    assert life.place.diary.count((15, "is_quiescent")) == 1
    assert (drained_at, "drain") in life.place.diary


@virtual
async def test_a_second_request_to_shut_down_skips_the_waits() -> None:
    """Forced, the request is stopped at once; the engine is still cleaned up, once."""
    life = Life()
    request = Request(1000)
    life.at(1, lambda: life.send(request))
    life.at(10, life.shutdown.request)
    life.at(12, life.shutdown.request)
    assert await life.live() is None
    assert request.items == ["first", "cancelled"]
    assert life.place.diary[-2:] == [(12, "cleanup"), (12, "shutdown")]


@pytest.mark.parametrize("serving_ends", [True, False])
@pytest.mark.parametrize("forced_at", [12, 20, 45.5])
@virtual
async def test_a_forced_shutdown_has_one_deadline(forced_at: float, *, serving_ends: bool) -> None:
    """However many of its steps hang, and whenever it is forced; `cleanup` has half of it at least."""
    life = Life(cleanup=1000)
    request = Request(1000, deaf=True)
    if not serving_ends:
        life.place.lost.set = lambda: None
    life.at(1, lambda: life.send(request))
    life.at(10, life.shutdown.request)
    life.at(forced_at, life.shutdown.request)
    assert isinstance(await life.live(), ResponseTimeout)
    assert asyncio.get_running_loop().time() == forced_at + TIMES.unwind_s
    (cleaned_at,) = (at for at, what in life.place.diary if what == "cleanup")
    assert cleaned_at <= forced_at + TIMES.unwind_s / 2
    request.check_stopped()


@pytest.mark.parametrize(("forced_at", "over_at"), [(16, 19), (20, 23), (None, 24)])
@virtual
async def test_a_cleanup_that_hangs_has_a_deadline(forced_at: int | None, over_at: int) -> None:
    """It ends the worker with an error that says so; sooner when the shutdown is forced."""
    life = Life(cleanup=1000)
    life.at(10, life.shutdown.request)
    if forced_at is not None:
        life.at(forced_at, life.shutdown.request)
    error = await life.live()
    assert isinstance(error, ResponseTimeout)
    assert error.message == f"cleanup did not end within {over_at - 15} s"
    assert life.place.diary[-2:] == [(15, "cleanup"), (over_at, "shutdown")]


@pytest.mark.rows("E1", "E5")
@pytest.mark.parametrize("step", ["start", "serve", "reachable", "register"])
@virtual
async def test_a_failing_start_is_cleaned_up_once(step: str) -> None:
    """
    The typed error comes out, after one cleanup and the runtime's end.

    The worker was never announced as ready.
    """
    life = Life()
    life.place.fails_at = step
    error = await life.live()
    assert isinstance(error, CannotConnect)
    assert (error.message, error.__cause__) == (step, None)
    assert life.place.steps[-2:] == ["cleanup", "shutdown"]
    assert life.place.steps.count("cleanup") == 1
    assert life.ready == []


@pytest.mark.rows("E1")
@virtual
async def test_a_config_without_a_model_is_an_error() -> None:
    """The engine is cleaned up, and never serves."""
    life = Life()
    life.engine.model = " "
    assert isinstance(await life.live(), InvalidArgument)
    assert life.place.steps == ["start", "cleanup", "shutdown"]


@pytest.mark.parametrize(("deaf", "cleaned_at"), [(False, 10), (True, 13)])
@virtual
async def test_a_lost_runtime_stops_requests_in_flight(*, deaf: bool, cleaned_at: float) -> None:
    """The engine is not cleaned up under a request, unless that ignores the stop."""
    life = Life()
    request = Request(1000, deaf=deaf)
    life.at(1, lambda: life.send(request))
    life.at(10, life.place.lost.set)
    assert isinstance(await life.live(), Disconnected)
    assert life.place.diary[-2:] == [(cleaned_at, "cleanup"), (cleaned_at, "shutdown")]
    request.check_stopped()


@pytest.mark.parametrize("fails", ["serving", "register", "ready"])
@pytest.mark.parametrize("late", [10.5, 12.5])
@virtual
async def test_a_failing_worker_admits_no_more_requests(fails: str, late: float) -> None:
    """Whatever fails after the first request, one that comes while others unwind is refused."""
    life = Life()
    in_flight, refused = Request(1000, deaf=True), Request(1)
    life.at(1, lambda: life.send(in_flight))
    life.at(late, lambda: life.send(refused))

    async def register(config: EngineConfig, mode: DisaggregationMode, path: str) -> None:
        await asyncio.sleep(10)
        if fails == "register":
            raise CannotConnect(f"register {path}")

    class Unready(list[EngineConfig]):
        def append(self, config: EngineConfig) -> None:
            raise CannotConnect(config.model)

    if fails == "serving":
        life.at(10, life.place.lost.set)
    else:
        life.place.register = register
    if fails == "ready":
        life.ready = Unready()
    assert isinstance(await life.live(), CannotConnect | Disconnected)
    in_flight.check_stopped()
    assert (refused.items, type(refused.error)) == ([], EngineShutdown)


@pytest.mark.parametrize("restored_at", [0, 22, 23.5])
@virtual
async def test_an_unlisted_worker_registers_again(restored_at: float) -> None:
    """Within seconds, as often as discovery needs, and again the next time; requests go on."""
    life = Life()
    request = Request(40)
    life.at(5, lambda: life.send(request))
    life.place.restored_at = restored_at
    for lost_at in (20.5, 40.5):
        life.at(lost_at, lambda: setattr(life.place, "listed", False))
    life.at(60, life.shutdown.request)
    assert await life.live() is None
    restored = [at for at, what in life.place.diary if what == "restore"]
    assert (restored[0], restored[-1]) == (21, 41)
    assert all(21 <= at <= max(21, restored_at + 1) for at in restored[:-1])
    assert request.items == ["first", "last"]


@pytest.mark.parametrize(
    ("reason", "given_up"), [("still not listed", 26), ("restore", 26), ("TimeoutError", 76)]
)
@virtual
async def test_a_worker_that_can_not_register_again_ends(reason: str, given_up: float) -> None:
    """Disconnected, after the requests in flight; what comes in the meantime is refused."""
    life = Life()
    request, late = Request(40), Request(1)
    life.place.restored_at = 1000
    life.place.fails_at = reason
    if reason == "TimeoutError":
        life.place.restore = lambda: asyncio.sleep(1000)
    life.at(20.5, lambda: setattr(life.place, "listed", False))
    life.at(given_up - 20, lambda: life.send(request))
    life.at(given_up + 5, lambda: life.send(late))
    error = await life.live()
    assert isinstance(error, Disconnected)
    assert reason in error.message
    assert life.place.diary[-2:] == [(given_up + 20, "cleanup"), (given_up + 20, "shutdown")]
    assert request.items == ["first", "last"]
    assert isinstance(late.error, EngineShutdown)


def lost_at(seconds: float, end: str | Exception) -> Callable[[], Coroutine[Any, Any, str]]:
    async def lost() -> str:
        await asyncio.sleep(seconds)
        if isinstance(end, Exception):
            raise end
        return end

    return lost


@pytest.mark.rows("E7")
@pytest.mark.parametrize("end", ["child died", OSError("child died"), asyncio.CancelledError()])
@virtual
async def test_a_lost_engine_has_its_requests_migrated(end: str | Exception) -> None:
    """It leaves discovery at once, fails its requests, refuses others, and is cleaned up."""
    life = Life(cleanup=2)
    life.engine.lost = lost_at(10, end)
    request, late = Request(1000), Request(1)
    life.at(5, lambda: life.send(request))
    life.at(11, lambda: life.send(late))
    error = await life.live()
    assert isinstance(error, Disconnected)
    assert isinstance(end, asyncio.CancelledError) or "child died" in error.message
    assert life.place.diary[-3:] == [(10, "leave"), (10, "cleanup"), (12, "shutdown")]
    assert (request.items, type(request.error)) == (["first"], Disconnected)
    assert isinstance(late.error, EngineShutdown)


@pytest.mark.rows("E7")
@pytest.mark.parametrize("ending", [False, True])
@virtual
async def test_a_lost_engine_gets_no_further_request(*, ending: bool) -> None:
    """Not while its worker leaves discovery, nor in the grace period."""
    life = Life()
    life.engine.lost = lost_at(10, "child died")

    async def leave() -> None:
        await asyncio.sleep(2)

    life.place.leave = leave
    if ending:
        life.at(7, life.shutdown.request)
    late = Request(1)
    life.at(11, lambda: life.send(late))
    assert isinstance(await life.live(), Disconnected) is not ending
    assert (late.items, type(late.error)) == ([], EngineShutdown)


@virtual
async def test_nothing_of_the_engine_or_the_registration_runs_beside_the_steps_of_the_end() -> None:
    """What is cancelled for them is waited for."""
    life = Life()

    async def unwind(what: str) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(1)
            life.place.note(what)

    async def register(config: EngineConfig, mode: DisaggregationMode, path: str) -> None:
        await unwind("register has ended")

    async def lost() -> str:
        await unwind("lost has ended")
        return ""

    life.place.register = register
    life.engine.lost = lost
    life.at(10, life.shutdown.request)
    assert await life.live() is None
    assert life.place.diary[-6:] == [
        (11, "register has ended"),
        (11, "leave"),
        (16, "drain"),
        (17, "lost has ended"),
        (17, "cleanup"),
        (17, "shutdown"),
    ]


@virtual
async def test_an_engine_that_goes_on_watching_holds_nothing_up() -> None:
    """It is cleaned up at the latest after the time to unwind."""
    life = Life()

    async def lost() -> str:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(5)
        return ""

    life.engine.lost = lost
    life.at(10, life.shutdown.request)
    assert await life.live() is None
    assert life.place.diary[-2:] == [(18, "cleanup"), (18, "shutdown")]
    await asyncio.sleep(5)


@virtual
async def test_a_time_out_of_the_cleanups_own_keeps_its_reason() -> None:
    """It is not taken for the deadline."""
    life = Life()

    async def cleanup() -> None:
        raise TimeoutError("the pool is still in use")

    life.engine.cleanup = cleanup
    life.at(10, life.shutdown.request)
    error = await life.live()
    assert isinstance(error, ResponseTimeout)
    assert error.message == "the pool is still in use"


@pytest.mark.rows("E7")
@virtual
async def test_an_engine_lost_during_shutdown_is_not_awaited() -> None:
    """Requests in flight at the loss continue elsewhere, and need not wait for the deadline."""
    life = Life()
    life.engine.lost = lost_at(20, "child died")
    request = Request(1000)
    life.at(5, lambda: life.send(request))
    life.at(10, life.shutdown.request)
    assert await life.live() is None
    assert (20, "drain") in life.place.diary
    assert isinstance(request.error, Disconnected)


@pytest.mark.rows("E7")
@pytest.mark.parametrize("kind", ["plain", "raises"])
@virtual
async def test_lost_has_to_be_async(kind: str) -> None:
    """Any other method of that name ends the worker with an error that names it."""
    life = Life()

    def lost() -> str:
        if kind == "raises":
            raise InvalidArgument("Engine.lost")
        return "never"

    life.engine.lost = lost
    error = await life.live()
    assert isinstance(error, InvalidArgument)
    assert "Engine.lost" in error.message
    assert life.place.steps[-1] == "shutdown"


@virtual
async def test_the_first_error_is_raised_when_cleanup_fails_too() -> None:
    """A cleanup that fails is an error of its own only where nothing failed before."""
    life = Life()
    life.at(10, life.shutdown.request)
    life.place.fails_at = "cleanup"
    assert isinstance(await life.live(), CannotConnect)
    both = Life()
    both.engine.model = ""
    both.place.fails_at = "cleanup"
    assert isinstance(await both.live(), InvalidArgument)
    assert both.place.steps.count("cleanup") == 1


@pytest.mark.parametrize("step", ["start", "health_check_payload", "cleanup"])
@virtual
async def test_an_error_without_a_type_gets_one(step: str) -> None:
    """Whatever an engine raises, the worker's error has a kind, and the log says where it is from."""
    life = Life()

    async def fail(*_: object) -> Any:
        raise KeyError("weights")

    setattr(life.engine, step, fail)
    life.at(10, life.shutdown.request)
    with capture_logs(logging.ERROR) as events:
        error = await life.live()
    assert isinstance(error, Unknown)
    assert error.message == "'weights'"
    (event,) = events
    line = fail.__code__.co_firstlineno + 1
    assert event["event"] == "worker failed"
    assert (event["error_class"], event["raised_at"]) == ("KeyError", f"{__name__}:{line}")


@pytest.mark.rows("E5")
@given(st.lists(st.floats(0, 80), min_size=1, max_size=3), st.lists(st.floats(0, 80), max_size=3))
@virtual
async def test_a_shutdown_at_any_time_cleans_up_once(
    asked: list[float], requests: list[float]
) -> None:
    """Cleanup comes once, after start and before the runtime's end, and never without a start."""
    life = Life("prefill", start=7, drain=4, cleanup=2)
    for at in asked:
        life.at(at, life.shutdown.request)
    for at in requests:
        life.at(at, lambda: life.send(Request(15)))
    assert await life.live() is None
    steps = life.place.steps
    assert steps.count("cleanup") == steps.count("start") <= 1
    assert steps[-1] == "shutdown"
    assert steps.count("shutdown") == 1
    if "drain" in steps:
        assert steps.index("leave") < steps.index("drain") < steps.index("cleanup")


@virtual
async def test_a_worker_that_is_stopped_while_it_registers_is_never_ready() -> None:
    """Nothing announces a worker that is about to end."""
    life = Life()

    async def register(config: EngineConfig, mode: DisaggregationMode, path: str) -> None:
        life.shutdown.request()

    life.place.register = register
    assert await life.live() is None
    assert life.ready == []


@pytest.mark.parametrize("swallows", [False, True])
@pytest.mark.parametrize("step", ["start", "health_check_payload"])
@virtual
async def test_a_worker_that_is_stopped_while_it_starts_serves_nothing(
    step: str, *, swallows: bool
) -> None:
    """What the engine does is cancelled; it is cleaned up at once, also if it starts all the same."""
    life = Life()

    async def hang(*_: object) -> EngineConfig | None:
        with suppress(*[asyncio.CancelledError] * swallows):
            await asyncio.sleep(1000)
        return EngineConfig(model="m") if step == "start" else None

    setattr(life.engine, step, hang)
    life.at(10, life.shutdown.request)
    assert await life.live() is None
    assert life.place.diary[-2:] == [(10, "cleanup"), (10, "shutdown")]
    assert "serve" not in life.place.steps


@pytest.mark.parametrize(("step", "cancelled_at"), [("drain", 35), ("cleanup", 24)])
@virtual
async def test_a_shutdown_forced_while_a_late_step_unwinds(step: str, cancelled_at: int) -> None:
    """The step has been cancelled already, so there is nothing to do, and nothing fails."""
    life = Life()

    async def hang() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(2)

    setattr(life.engine, step, hang)
    life.at(10, life.shutdown.request)
    life.at(cancelled_at + 1, life.shutdown.request)
    with capture_logs(logging.ERROR) as logged:
        await life.live()
    assert logged == []
    assert life.place.diary[-1] == (cancelled_at + 2, "shutdown")


@virtual
async def test_a_shutdown_requested_before_start_starts_nothing() -> None:
    """A worker that is shut down at once neither starts nor cleans up its engine."""
    life = Life()
    life.shutdown.request()
    assert await life.live() is None
    assert life.place.steps == ["shutdown"]


@virtual
async def test_an_engine_needs_no_optional_methods() -> None:
    """An engine with `start` and `cleanup` alone, besides `generate`, lives like any other."""

    class Bare:
        def __init__(self, engine: Engine) -> None:
            self.start = engine.start
            self.cleanup = engine.cleanup

    life = Life("prefill")
    bare: Any = Bare(life.engine)
    life.engine = bare
    life.at(10, life.shutdown.request)
    assert await life.live() is None
    assert life.place.steps[-2:] == ["cleanup", "shutdown"]
    assert life.place.probes == [None]


@pytest.mark.parametrize("value", [-1, True])
def test_times_are_seconds_from_zero(value: float) -> None:
    """A time that is none is refused by name."""
    expected = f"drain_s: expected a number of seconds, 0 or more, got {value}"
    with pytest.raises(InvalidArgument, match=expected):
        ShutdownTimes(drain_s=value)


@pytest.mark.rows("S6")
@pytest.mark.parametrize("step", ["start", "health_check_payload", "drain", "cleanup"])
@virtual
async def test_a_cancellation_by_the_engine_is_unknown(step: str) -> None:
    """It ends the worker as an error with a kind; a drain that fails is only logged."""
    life = Life()

    async def cancelled(*_: object) -> Any:
        raise asyncio.CancelledError

    setattr(life.engine, step, cancelled)
    life.at(10, life.shutdown.request)
    error = await life.live()
    if step == "drain":
        assert error is None
    else:
        assert isinstance(error, Unknown)
        assert error.message == "the engine was cancelled from within"
    assert life.place.steps[-1] == "shutdown"


@virtual
async def test_a_cancelled_worker_stays_cancelled() -> None:
    """A cancellation of the worker's own task is no failure of its engine."""
    life = Life(start=100)
    task = asyncio.create_task(life.live())
    life.at(1, task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert life.place.steps == ["start", "cleanup", "shutdown"]


@virtual
async def test_an_engine_that_exits_is_named_in_the_log() -> None:
    """The exit is not held up, but it may have no other word."""
    life = Life()

    async def leave(worker_id: int) -> EngineConfig:
        raise SystemExit(3)

    life.engine.start = leave
    with capture_logs(logging.ERROR) as events, suppress(SystemExit):
        await life.live()
    (event,) = events
    assert (event["event"], event["error_class"]) == ("worker failed", "SystemExit")
    assert life.place.steps == ["cleanup", "shutdown"]


@pytest.mark.parametrize("payload", ["hello", [1], 5, True])
@virtual
async def test_an_invalid_health_check_is_rejected(payload: Any) -> None:
    """Before anything is served; the message has the method and what it returned."""
    life = Life()

    async def wrong() -> Any:
        return payload

    life.engine.health_check_payload = wrong
    error = await life.live()
    assert isinstance(error, InvalidArgument)
    named = f"Engine.health_check_payload must .* or None, got {type(payload).__name__}"
    assert re.fullmatch(named, error.message)
    assert "serve" not in life.place.steps


@pytest.mark.parametrize("step", ["start", "health_check_payload", "cleanup"])
@virtual
async def test_a_method_that_is_not_async_is_named(step: str) -> None:
    """The error has the method, and what was expected."""
    life = Life()

    def plain(*_: object) -> dict[str, object]:
        return {}

    setattr(life.engine, step, plain)
    life.at(10, life.shutdown.request)
    error = await life.live()
    assert isinstance(error, InvalidArgument)
    assert error.message == f"Engine.{step} must be an async method, it returned dict"
