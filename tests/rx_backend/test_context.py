"""The request context: identity, and signals that stay set, from any thread."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from rx_backend.context import LatchedSignal, RequestContext
from rx_backend.testing import run_virtual
from tests.rx_backend._engines import now, virtual

Signal = Callable[[RequestContext], None]

# What is called, and the signal that it sets.
SIGNALS = [
    pytest.param(RequestContext.stop_generating, RequestContext.stopped, id="stop"),
    pytest.param(RequestContext.kill, RequestContext.stopped, id="kill-stops"),
    pytest.param(RequestContext.kill, RequestContext.killed, id="kill"),
]


def heard(signal: LatchedSignal) -> list[str]:
    """What a subscriber of *signal* gets, as it comes."""
    events: list[str] = []
    signal.subscribe(
        lambda value: events.append(f"{value}"), on_completed=lambda: events.append("|")
    )
    return events


@pytest.mark.rows("C1")
def test_metadata_is_a_snapshot() -> None:
    """What the caller does to its mapping later is not seen, and nobody can write to the snapshot."""
    metadata = {"tenant": "a"}
    context = RequestContext("r1", metadata)
    metadata["tenant"] = "b"
    assert (context.id, dict(context.metadata)) == ("r1", {"tenant": "a"})
    with pytest.raises(TypeError):
        context.metadata["tenant"] = "c"  # pyright: ignore[reportIndexIssue]


TRACE = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "vendor=1"}


def in_any_case(name: str) -> st.SearchStrategy[str]:
    flips = st.lists(st.booleans(), min_size=len(name), max_size=len(name))
    return flips.map(
        lambda upper: "".join(
            letter.upper() if up else letter for letter, up in zip(name, upper, strict=True)
        )
    )


@pytest.mark.rows("C1", "P1")
@given(
    in_any_case("traceparent"),
    in_any_case("tracestate"),
    st.sampled_from(["trace_headers", "metadata"]),
    st.dictionaries(st.sampled_from(["tenant", "X-Id", "Baggage"]), st.text()),
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


@pytest.mark.rows("C1")
def test_contexts_without_an_id_get_one_each() -> None:
    """Two contexts made without an id can be told apart, and have no metadata."""
    one, other = RequestContext(), RequestContext()
    assert one.id != other.id
    assert not one.metadata
    assert not one.trace_headers


@pytest.mark.rows("C1")
def test_a_kill_is_also_a_stop() -> None:
    """A stop leaves the request to end gracefully; a kill counts as both."""
    context = RequestContext("r1")
    assert (context.is_stopped, context.is_killed) == (False, False)
    context.stop_generating()
    assert (context.is_stopped, context.is_killed) == (True, False)
    context.kill()
    assert (context.is_stopped, context.is_killed) == (True, True)
    assert repr(context) == "RequestContext('r1', killed)"


@pytest.mark.rows("C1", "C2")
@pytest.mark.parametrize(("signal", "latched_of"), SIGNALS)
@virtual
async def test_late_waiters_and_subscribers_see_a_signal(
    signal: Signal, latched_of: Callable[[RequestContext], LatchedSignal]
) -> None:
    """Whoever asks after the signal is answered at once, however often."""
    context = RequestContext()
    signal(context)
    for _ in range(2):
        assert await latched_of(context) is True
        assert heard(latched_of(context)) == ["True", "|"]
    assert now() == 0


@pytest.mark.rows("C2")
@pytest.mark.parametrize(("signal", "latched_of"), SIGNALS)
@virtual
async def test_early_waiters_and_subscribers_hear_a_signal_once(
    signal: Signal, latched_of: Callable[[RequestContext], LatchedSignal]
) -> None:
    """Waiters wake and subscribers hear when the signal comes, and not again at a second one."""
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
    assert events == ["True", "|"]


@pytest.mark.rows("C2")
@virtual
async def test_a_stop_does_not_kill() -> None:
    """Who waits for the kill is not woken by a stop, and is by the kill that follows."""
    context = RequestContext()
    events = heard(context.killed())
    context.stop_generating()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(context.killed(), 5)
    assert not context.killed().is_set
    context.kill()
    assert events == ["True", "|"]


@pytest.mark.rows("C2")
@virtual
async def test_who_left_is_forgotten() -> None:
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
@virtual
async def test_a_signal_from_a_thread_is_heard_on_the_loop() -> None:
    """Whichever thread signals, waiters and subscribers are served on the loop that they are on."""
    context = RequestContext()
    threads: list[int] = []
    context.stopped().subscribe(lambda _: threads.append(threading.get_ident()))
    waiting = asyncio.ensure_future(context.stopped())
    await asyncio.to_thread(context.stop_generating)
    assert await waiting is True
    assert threads == [threading.get_ident()]


def woken_elsewhere(context: RequestContext, signal: Callable[[], None]) -> list[int]:
    """The threads in which a waiter and a subscriber on a loop of their own thread are called."""
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
async def test_who_leaves_while_a_signal_is_on_its_way_is_not_called() -> None:
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
@virtual
async def test_a_listener_that_fails_on_the_loop_is_logged_there() -> None:
    """A signal from a thread makes no difference to what becomes of a listener's bug."""
    context = RequestContext("r1")

    def fail() -> None:
        raise LookupError

    context.stopped().listen(fail)
    events = heard(context.stopped())
    with capture_logs() as logs:
        await asyncio.to_thread(context.stop_generating)
        await asyncio.sleep(0)
    assert events == ["True", "|"]
    assert [(entry["event"], entry["request_id"]) for entry in logs] == [
        ("context listener failed", "r1")
    ]


@pytest.mark.rows("C3")
@virtual
async def test_many_threads_may_signal_at_once() -> None:
    """Four threads that stop and kill together set each level once."""
    context = RequestContext()
    stopped, killed = heard(context.stopped()), heard(context.killed())
    barrier = threading.Barrier(4, timeout=10)

    def signal(place: int) -> None:
        barrier.wait()
        (context.kill if place % 2 else context.stop_generating)()

    await asyncio.gather(*(asyncio.to_thread(signal, place) for place in range(4)))
    await asyncio.sleep(0)
    assert stopped == killed == ["True", "|"]


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


@pytest.mark.rows("C3")
def test_without_a_loop_listeners_are_called_by_who_signals() -> None:
    """A context serves code without an event loop as well."""
    context = RequestContext()
    events = heard(context.stopped())
    thread = threading.Thread(target=context.kill)
    thread.start()
    thread.join()
    assert events == ["True", "|"]


@pytest.mark.rows("C1", "C3")
def test_a_failing_listener_does_not_silence_the_others() -> None:
    """A listener's bug is logged; the others hear the signal, and who signals is not disturbed."""
    context = RequestContext()

    def fail() -> None:
        raise LookupError

    context.stopped().listen(fail)
    events = heard(context.stopped())
    with capture_logs() as logs:
        context.stop_generating()
    assert events == ["True", "|"]
    assert [entry["event"] for entry in logs] == ["context listener failed"]


@pytest.mark.rows("C4")
def test_the_first_token_is_noted_once_in_decode_mode() -> None:
    """The notice is a level like the signals; giving it again changes nothing."""
    context = RequestContext()
    context.bind(None, decode=True)
    early = heard(context.first_token())
    context.notify_first_token()
    context.notify_first_token()
    assert early == heard(context.first_token()) == ["True", "|"]
    assert not context.is_stopped


@pytest.mark.rows("C4")
def test_the_first_token_is_not_noted_in_other_modes() -> None:
    """Outside decode mode the notice does nothing."""
    context = RequestContext()
    events = heard(context.first_token())
    context.notify_first_token()
    assert not context.first_token().is_set
    assert events == []


@pytest.mark.rows("C1", "C3")
@pytest.mark.parametrize(("signal", "latched_of"), SIGNALS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_child_has_the_signals_of_its_parent(
    signal: Signal, latched_of: Callable[[RequestContext], LatchedSignal], when: str
) -> None:
    """Those that were given before it was made too; whoever signals finds them set on both."""
    context = RequestContext("r1", {"tenant": "a"}, trace_headers={"traceparent": "00"})
    if when == "before":
        signal(context)
    child, grandchild = context.child("r1/2"), context.child().child()
    events = heard(latched_of(grandchild))
    if when == "after":
        thread = threading.Thread(target=signal, args=(context,))
        thread.start()
        thread.join()
    assert events == ["True", "|"]
    for other in (child, grandchild):
        assert (other.is_stopped, other.is_killed) == (context.is_stopped, context.is_killed)
    assert (child.id, grandchild.id) == ("r1/2", "r1")
    assert (child.metadata, child.trace_headers) == (context.metadata, context.trace_headers)


@pytest.mark.rows("C1")
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_child_sees_a_kill_as_a_kill(depth: int) -> None:
    """What listens for the child's stop can tell that it is a kill, at every depth."""
    context = RequestContext()
    child = context
    for _ in range(depth):
        child = child.child()
    seen: list[tuple[bool, bool]] = []
    child.stopped().listen(lambda: seen.append((child.is_stopped, child.is_killed)))
    context.kill()
    assert seen == [(True, True)]


@pytest.mark.rows("C1", "C4")
def test_a_child_is_stopped_alone() -> None:
    """Neither its parent nor another child hears of it; the first-token notice is its own too."""
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
