"""The request context: identity, and signals that stay set, from any thread, at any bytecode."""

from __future__ import annotations

import asyncio
import inspect
import selectors
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rx_backend.context import LatchedSignal, RequestContext
from rx_backend.disagg import DisaggregationMode
from rx_backend.errors import InvalidArgument
from rx_backend.testing import run_virtual
from tests.engines import now, virtual
from tests.logs import capture_logs

Signal = Callable[[RequestContext], None]

# What is called, and the signal that it sets.
SIGNALS = pytest.mark.parametrize(
    ("signal", "latched_of"),
    [
        pytest.param(RequestContext.stop_generating, RequestContext.stopped, id="stop"),
        pytest.param(RequestContext.kill, RequestContext.stopped, id="kill-stops"),
        pytest.param(RequestContext.kill, RequestContext.killed, id="kill"),
    ],
)


def heard(signal: LatchedSignal) -> list[str]:
    """Return what a subscriber of *signal* is called with, a list that grows."""
    events: list[str] = []
    signal.subscribe(
        lambda value: events.append(f"{value}"), on_completed=lambda: events.append("|")
    )
    return events


def in_thread(call: Callable[[], object]) -> None:
    """Call something in another thread, which must not have to wait for this one."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive(), "it waits for the thread that it interrupted"


@pytest.mark.rows("C1")
def test_an_identity_is_a_snapshot() -> None:
    """Later changes to the caller's mapping are not seen; without an id a context gets one."""
    metadata = {"tenant": "a"}
    context = RequestContext("r1", metadata)
    metadata["tenant"] = "b"
    assert (context.id, dict(context.metadata)) == ("r1", {"tenant": "a"})
    with pytest.raises(TypeError):
        context.metadata["tenant"] = "c"  # pyright: ignore[reportIndexIssue]
    one, other = RequestContext(), RequestContext()
    assert one.id != other.id
    assert not one.metadata
    assert not one.trace_headers


TRACE = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "vendor=1"}


def in_any_case(name: str) -> st.SearchStrategy[str]:
    def flip(bits: int) -> str:
        flipped = [each.upper() if bits >> at & 1 else each for at, each in enumerate(name)]
        return "".join(flipped)

    return st.integers(0, 2 ** len(name) - 1).map(flip)


@pytest.mark.rows("C1", "P1")
@given(
    in_any_case("traceparent"),
    in_any_case("tracestate"),
    st.sampled_from(["trace_headers", "metadata"]),
    st.dictionaries(
        st.sampled_from(["tenant", "X-Id", "Baggage"]), st.sampled_from(["", "a", "ü"])
    ),
)
def test_trace_headers_are_read_in_any_case(
    parent: str, state: str, place: str, others: dict[str, str]
) -> None:
    """They are found by their lower-case names wherever they were given; metadata stays as it was."""
    given = others | {parent: TRACE["traceparent"], state: TRACE["tracestate"]}
    context = (
        RequestContext("r1", given)
        if place == "metadata"
        else RequestContext("r1", others, trace_headers=given)
    )
    for one in (context, context.child()):
        assert TRACE.items() <= one.trace_headers.items()
        assert all(name == name.lower() for name in one.trace_headers)
        assert dict(one.metadata) == (given if place == "metadata" else others)


@pytest.mark.rows("C1", "P1")
@pytest.mark.parametrize(
    ("metadata", "headers", "expected"),
    [
        ({"traceparent": "m", "tracestate": "s"}, {"Traceparent": "h"}, {"traceparent": "h"}),
        ({"Traceparent": "m"}, {"baggage": "b"}, {"traceparent": "m", "baggage": "b"}),
        ({"tracestate": "s", "tenant": "t"}, {}, {}),
        ({"TraceParent": "u", "traceparent": "l", "TRACEPARENT": "U"}, {}, {"traceparent": "l"}),
    ],
)
def test_trace_headers_come_from_one_place(
    metadata: dict[str, str], headers: dict[str, str], expected: dict[str, str]
) -> None:
    """Those that were given go before metadata, and the plain spelling before any other."""
    context = RequestContext("r1", metadata, trace_headers=headers)
    assert dict(context.trace_headers) == expected


# Signals.


@pytest.mark.rows("C1", "C2")
@SIGNALS
@virtual
async def test_a_signal_is_seen_once_early_and_late(
    signal: Signal, latched_of: Callable[[RequestContext], LatchedSignal]
) -> None:
    """Waiters wake and subscribers are called when it comes, or at once where it has come already."""
    context = RequestContext()
    events = heard(latched_of(context))
    woken: list[float] = []

    async def wait() -> None:
        await latched_of(context)
        woken.append(now())

    async with asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(wait())
        await asyncio.sleep(2)
        assert events == []
        signal(context)
        signal(context)
    assert woken == [2, 2, 2]
    for _ in range(2):
        assert await latched_of(context) is True
        assert heard(latched_of(context)) == events == ["True", "|"]
    assert now() == 2


@pytest.mark.rows("C1", "C2")
@virtual
async def test_a_kill_is_also_a_stop() -> None:
    """A stop leaves the request to end gracefully, and wakes none that waits for the kill."""
    context = RequestContext("r1")
    events = heard(context.killed())
    assert (context.is_stopped, context.is_killed) == (False, False)
    context.stop_generating()
    assert (context.is_stopped, context.is_killed) == (True, False)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(context.killed(), 5)
    assert not context.killed().is_set
    context.kill()
    assert (context.is_stopped, context.is_killed) == (True, True)
    assert events == ["True", "|"]
    assert repr(context) == "RequestContext('r1', killed)"


@pytest.mark.rows("C2")
@virtual
async def test_disposed_listeners_are_forgotten() -> None:
    """A cancelled waiter, a disposed subscriber and an undone listener are neither called nor kept."""
    context = RequestContext()
    calls: list[bool] = []

    class Listener:
        def __call__(self) -> None:
            calls.append(True)

    listener = Listener()
    kept = weakref.ref(listener)
    context.stopped().listen(listener)()
    context.stopped().subscribe(calls.append).dispose()
    waiting = asyncio.ensure_future(context.stopped())
    await asyncio.sleep(0)
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    del listener
    assert kept() is None
    context.stop_generating()
    assert calls == []


@pytest.mark.rows("C3")
@pytest.mark.parametrize(
    "methods", [["stop_generating"], ["kill"], ["stop_generating", "kill"] * 2]
)
@virtual
async def test_signals_from_threads_arrive_on_the_loop(methods: list[str]) -> None:
    """Whichever threads signal, waiters and subscribers are called once, on their own loop."""
    context = RequestContext()
    threads: list[int] = []
    context.stopped().subscribe(lambda _: threads.append(threading.get_ident()))
    waiting = asyncio.ensure_future(context.stopped())
    await asyncio.gather(*(asyncio.to_thread(getattr(context, name)) for name in methods))
    assert await waiting is True
    assert threads == [threading.get_ident()]


def woken_elsewhere(context: RequestContext, signal: Callable[[], None]) -> list[int]:
    """Return the threads in which a waiter and a subscriber on a loop of their own thread are called."""
    waits = threading.Event()
    threads: list[int] = []

    async def wait() -> None:
        context.stopped().subscribe(lambda _: threads.append(threading.get_ident()))
        waiting = asyncio.ensure_future(asyncio.wait_for(context.stopped(), 5))
        await asyncio.sleep(0)
        waits.set()
        await waiting
        threads.append(threading.get_ident())

    thread = threading.Thread(target=asyncio.run, args=(wait(),))
    thread.start()
    waits.wait(5)
    signal()
    thread.join(5)
    assert not thread.is_alive()
    assert set(threads) == {thread.ident}
    return threads


@pytest.mark.rows("C2", "C3")
@virtual
async def test_a_waiter_on_another_loop_is_woken_there() -> None:
    """A thread with a loop of its own waits for a request of this loop, and is woken in its place."""
    context = RequestContext()
    context.bind(asyncio.get_running_loop(), decode=False)
    threads = await asyncio.to_thread(woken_elsewhere, context, context.stop_generating)
    assert len(threads) == 2


@pytest.mark.rows("C2")
@virtual
async def test_a_subscriber_without_a_loop_is_called_on_the_requests() -> None:
    """Code in a thread without a loop subscribes; the bound loop is the next best place."""
    context = RequestContext()
    context.bind(asyncio.get_running_loop(), decode=False)
    threads: list[int] = []
    await asyncio.to_thread(
        context.stopped().subscribe, lambda _: threads.append(threading.get_ident())
    )
    await asyncio.to_thread(context.stop_generating)
    await asyncio.sleep(0)
    assert threads == [threading.get_ident()]


@pytest.mark.rows("C2")
@virtual
async def test_a_listener_disposed_during_a_signal_is_not_called() -> None:
    """A thread has signalled, but the loop has not run since: the disposal still counts."""
    context = RequestContext()
    calls: list[str] = []
    subscription = context.stopped().subscribe(lambda _: calls.append("subscriber"))
    unlisten = context.stopped().listen(lambda: calls.append("listener"))
    thread = threading.Thread(target=context.stop_generating)
    thread.start()
    thread.join()
    subscription.dispose()
    unlisten()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert calls == []


@pytest.mark.rows("C1", "C3")
@pytest.mark.parametrize("where", ["thread", "loop", "no loop"])
def test_a_failing_listener_does_not_affect_others(where: str) -> None:
    """A listener's bug is logged; the others get the signal, and the caller is not disturbed."""
    context = RequestContext("r1")

    def fail() -> None:
        raise LookupError

    async def signal() -> list[str]:
        context.stopped().listen(fail)
        events = heard(context.stopped())
        if where == "thread":
            await asyncio.to_thread(context.stop_generating)
            await asyncio.sleep(0)
        else:
            context.stop_generating()
        return events

    def signal_without_loop() -> list[str]:
        context.stopped().listen(fail)
        events = heard(context.stopped())
        in_thread(context.kill)
        return events

    with capture_logs() as logs:
        events = signal_without_loop() if where == "no loop" else run_virtual(signal())
    assert events == ["True", "|"]
    assert [(entry["event"], entry["request_id"]) for entry in logs] == [
        ("context listener failed", "r1")
    ]


@pytest.mark.rows("C3")
def test_a_signal_after_the_loop_has_closed_is_harmless() -> None:
    """A listener whose loop is gone is passed over; the level is set all the same."""
    context = RequestContext()
    calls: list[bool] = []

    async def subscribe() -> None:
        context.stopped().subscribe(calls.append)

    run_virtual(subscribe())
    context.stop_generating()
    assert context.is_stopped
    assert calls == []


@pytest.mark.rows("C4")
@pytest.mark.parametrize("decode", [True, False])
def test_the_first_token_is_recorded_once_in_decode_mode(decode: bool) -> None:
    """
    The notification is latched like the signals.

    A second one, and one in other modes, does nothing.
    """
    context = RequestContext()
    context.bind(None, decode=decode)
    early = heard(context.first_token())
    context.notify_first_token()
    context.notify_first_token()
    assert early == heard(context.first_token()) == (["True", "|"] if decode else [])
    assert context.first_token().is_set is decode
    assert not context.is_stopped


# Children.


@pytest.mark.rows("C1", "C3")
@SIGNALS
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_child_has_the_signals_of_its_parent(
    signal: Signal, latched_of: Callable[[RequestContext], LatchedSignal], when: str
) -> None:
    """Earlier ones too; the caller finds them set on both, and a stop of a kill as a kill."""
    context = RequestContext("r1", {"tenant": "a"}, trace_headers={"traceparent": "00"})
    if when == "before":
        signal(context)
    child, grandchild = context.child("r1/2"), context.child().child()
    events = heard(latched_of(grandchild))
    seen: list[tuple[bool, bool]] = []
    for one in (child, grandchild):
        one.stopped().listen(lambda one=one: seen.append((one.is_stopped, one.is_killed)))
    if when == "after":
        in_thread(partial(signal, context))
    assert events == ["True", "|"]
    assert seen == [(True, context.is_killed)] * 2
    for other in (child, grandchild):
        assert (other.is_stopped, other.is_killed) == (context.is_stopped, context.is_killed)
    assert (child.id, grandchild.id) == ("r1/2", "r1")
    assert (child.metadata, child.trace_headers) == (context.metadata, context.trace_headers)


@pytest.mark.rows("C1", "C3")
@virtual
async def test_a_child_has_the_signals_of_its_parent_at_once() -> None:
    """In whichever thread; an engine that looks does not wait for a turn of the event loop."""
    context = RequestContext()
    context.bind(asyncio.get_running_loop(), decode=False)
    child = context.child()
    in_thread(context.kill)
    assert child.is_killed


@pytest.mark.rows("C1", "C4")
def test_a_child_can_be_stopped_separately() -> None:
    """
    Neither its parent nor another child is stopped.

    Its first-token notification is its own too.
    """
    context = RequestContext()
    context.bind(None, decode=True)
    child, other = context.child(), context.child()
    child.kill()
    child.notify_first_token()
    assert child.is_killed
    assert child.first_token().is_set
    assert not any(one.is_stopped or one.first_token().is_set for one in (context, other))
    context.notify_first_token()
    assert not other.first_token().is_set


# Interrupted at every bytecode: by a signal handler, or by another thread.


MODULES = {"rx_backend.context", "rx_backend.latched_signal"}


Interrupt = Callable[[], object]


@contextmanager
def interrupted(at: int, interrupt: Interrupt) -> Generator[Callable[[], bool]]:
    """
    Call *interrupt* once, before the context's code comes to its bytecode number *at*.

    Yields a function that tells whether it came so far.
    """
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if frame.f_globals.get("__name__") not in MODULES:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            count += 1
            if count == at + 1:
                interrupt()
        return trace

    before = sys.gettrace()
    # Python 3.12 traces bytecodes only where some frame had asked for them before.
    here = inspect.currentframe()
    assert here is not None
    here.f_trace_opcodes = True
    sys.settrace(trace)
    try:
        yield lambda: count > at
    finally:
        sys.settrace(before)


class Calls:
    """Who was called, and how often."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def listener(self, name: str) -> Callable[..., None]:
        """Make a listener of that name."""
        self.counts[name] = 0

        def called(*_: object) -> None:
            self.counts[name] += 1

        return called


def listen(context: RequestContext, calls: Calls) -> None:
    """Listen to each signal."""
    context.stopped().listen(calls.listener("late stop"))
    context.killed().subscribe(calls.listener("late kill"))
    context.first_token().subscribe(on_completed=calls.listener("late first token"))


def signal_all(context: RequestContext, _: Calls) -> None:
    """Give all signals."""
    context.stop_generating()
    context.kill()
    context.notify_first_token()


INTERRUPTS = [
    RequestContext.stop_generating,
    RequestContext.kill,
    RequestContext.notify_first_token,
]


def in_handler(interrupt: Interrupt) -> None:
    """Run *interrupt* as a signal handler is: in this thread, in the middle of what it does."""
    interrupt()


PLACES: dict[str, Callable[[Interrupt], None]] = {"handler": in_handler, "thread": in_thread}


@pytest.mark.rows("C3", "C4")
@pytest.mark.parametrize("action", [listen, signal_all], ids=lambda action: action.__name__)
@pytest.mark.parametrize("interrupt", INTERRUPTS, ids=lambda method: method.__name__)
@pytest.mark.parametrize(("place", "on_loop"), [("handler", True), ("thread", False)])
@virtual
async def test_every_listener_is_called_once(
    action: Callable[[RequestContext, Calls], None],
    interrupt: Callable[[RequestContext], None],
    place: str,
    on_loop: bool,
) -> None:
    """Wherever a signal comes in between, each listener is called when all were given, once."""

    async def run(at: int) -> bool:
        context, calls = RequestContext("r1"), Calls()

        def scene() -> bool:
            context.bind(None, decode=True)
            context.stopped().subscribe(calls.listener("early stop"))
            context.killed().listen(calls.listener("early kill"))
            context.first_token().listen(calls.listener("early first token"))
            with interrupted(at, partial(PLACES[place], partial(interrupt, context))) as came:
                action(context, calls)
                has_come = came()
            signal_all(context, calls)
            return has_come

        has_come = scene() if on_loop else await asyncio.to_thread(scene)
        for _ in range(3):
            await asyncio.sleep(0)
        assert set(calls.counts.values()) == {1}, (at, calls.counts)
        return has_come

    at = 0
    while await run(at):
        at += 1
    assert at > 50


@pytest.mark.rows("C3")
@pytest.mark.parametrize("interrupt", INTERRUPTS[:2], ids=lambda method: method.__name__)
@pytest.mark.parametrize("place", PLACES)
def test_a_disposed_listener_is_called_at_most_once(
    interrupt: Callable[[RequestContext], None], place: str
) -> None:
    """A disposal that a signal interrupts: called or not, but no other listener is forgotten."""
    at, has_come = 0, True
    while has_come:
        context, calls = RequestContext("r1"), Calls()
        leaving = context.stopped().subscribe(calls.listener("leaving"))
        context.stopped().listen(calls.listener("staying"))
        with interrupted(at, partial(PLACES[place], partial(interrupt, context))) as came:
            leaving.dispose()
            has_come = came()
        context.stop_generating()
        assert calls.counts["staying"] == 1
        assert calls.counts["leaving"] <= (1 if has_come else 0)
        at += 1
    assert at > 5


@pytest.mark.rows("C1", "C3")
@pytest.mark.parametrize("place", PLACES)
def test_a_child_made_during_a_kill_is_killed(place: str) -> None:
    """Its listeners never see the stop of a kill without the kill."""
    at, has_come = 0, True
    while has_come:
        context = RequestContext("r1")
        early = context.child()
        seen: list[bool] = []
        early.stopped().listen(lambda early=early, seen=seen: seen.append(early.is_killed))
        with interrupted(at, partial(PLACES[place], context.kill)) as came:
            child = context.child()
            child.stopped().listen(lambda child=child, seen=seen: seen.append(child.is_killed))
            has_come = came()
        context.kill()
        assert seen == [True, True], at
        at += 1
    assert at > 50


@pytest.mark.rows("C1", "C3")
@pytest.mark.parametrize("place", PLACES)
def test_a_kill_sets_stop_and_kill_together(place: str) -> None:
    """Checking, listening or making a child in the middle of a kill never sees only the stop."""
    at, has_come = 0, True
    while has_come:
        context = RequestContext("r1")
        seen: list[tuple[bool, bool]] = []

        def look(context: RequestContext = context, seen: list[tuple[bool, bool]] = seen) -> None:
            for one in (context, context.child()):
                seen.append((one.is_stopped, one.is_killed))
                one.stopped().listen(lambda one=one: seen.append((one.is_stopped, one.is_killed)))

        with interrupted(at, partial(PLACES[place], look)) as came:
            context.kill()
            has_come = came()
        assert (True, False) not in seen, at
        assert seen.count((True, True)) >= 2 or not has_come
        at += 1
    assert at > 5


class InterruptedSelector(selectors.DefaultSelector):
    """A selector in whose first long wait a signal arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = 0
        self.woken = False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout != 0 and not self.waits:
            self.waits += 1
            signal.raise_signal(signal.SIGUSR1)
            events = super().select(5)
            self.woken = bool(events)
            return events
        return super().select(timeout)


@pytest.mark.rows("C2", "C3")
@pytest.mark.parametrize("how", ["await", "subscribe"])
def test_a_signal_handler_wakes_an_idle_loop(how: str) -> None:
    """Python runs the handler in the middle of the loop's wait, which must not go on."""
    context = RequestContext()
    selector = InterruptedSelector()

    async def wait() -> bool:
        if how == "await":
            return await context.stopped()
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        context.stopped().subscribe(future.set_result)
        return await future

    def handle(_number: int, _frame: FrameType | None) -> None:
        context.stop_generating()

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
            assert runner.run(wait())
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert (selector.waits, selector.woken) == (1, True)


# The mode of disaggregation.


@pytest.mark.rows("P2", "TY-mode")
def test_a_mode_is_its_span_value() -> None:
    """The three modes have the values of the reference, and are read back from them."""
    assert list(DisaggregationMode) == ["agg", "prefill", "decode"]
    for mode in DisaggregationMode:
        assert str(mode) == mode.value
        assert DisaggregationMode.parse(mode.value) is mode
        assert DisaggregationMode.parse(mode) is mode
    assert [mode.is_prefill for mode in DisaggregationMode] == [False, True, False]
    assert [mode.is_decode for mode in DisaggregationMode] == [False, False, True]


@pytest.mark.rows("TY-mode")
@pytest.mark.parametrize("value", ["", "Decode", "aggregated", "encode", None, 3, ["agg"]])
def test_an_invalid_mode_is_rejected_with_the_valid_values(value: object) -> None:
    """A wrong mode is an InvalidArgument that names the parameter, the choices and the value."""
    with pytest.raises(InvalidArgument) as caught:
        DisaggregationMode.parse(value)  # pyright: ignore[reportArgumentType]
    assert caught.value.message == f"mode: expected one of agg, prefill, decode, got {value!r}"
