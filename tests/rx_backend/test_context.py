"""The request context: identity, and signals that stay set, from any thread."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress

import pytest
from structlog.testing import capture_logs

from rx_backend.context import LatchedSignal, RequestContext
from rx_backend.testing import run_virtual
from tests.rx_backend._engines import now, virtual

Signal = Callable[[RequestContext], None]

# What is signalled, and the level that it sets.
SIGNALS = [
    pytest.param(RequestContext.stop_generating, RequestContext.stopped, id="stop"),
    pytest.param(RequestContext.kill, RequestContext.stopped, id="kill-stops"),
    pytest.param(RequestContext.kill, RequestContext.killed, id="kill"),
]


def heard(level: LatchedSignal) -> list[str]:
    """What a subscriber of *level* hears, as it comes."""
    events: list[str] = []
    level.subscribe(
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
@pytest.mark.parametrize(("signal", "level_of"), SIGNALS)
@virtual
async def test_late_waiters_and_subscribers_see_a_signal(
    signal: Signal, level_of: Callable[[RequestContext], LatchedSignal]
) -> None:
    """Whoever asks after the signal is answered at once, however often."""
    context = RequestContext()
    signal(context)
    for _ in range(2):
        assert await level_of(context) is True
        assert heard(level_of(context)) == ["True", "|"]
    assert now() == 0


@pytest.mark.rows("C2")
@pytest.mark.parametrize(("signal", "level_of"), SIGNALS)
@virtual
async def test_early_waiters_and_subscribers_hear_a_signal_once(
    signal: Signal, level_of: Callable[[RequestContext], LatchedSignal]
) -> None:
    """Waiters wake and subscribers hear when the signal comes, and not again at a second one."""
    context = RequestContext()
    events = heard(level_of(context))
    woken: list[float] = []

    async def wait() -> None:
        await level_of(context)
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
@pytest.mark.parametrize(("signal", "level_of"), SIGNALS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_child_has_the_signals_of_its_parent(
    signal: Signal, level_of: Callable[[RequestContext], LatchedSignal], when: str
) -> None:
    """Those that were given before it was made too; whoever signals finds them set on both."""
    context = RequestContext("r1", {"tenant": "a"}, trace_headers={"traceparent": "00"})
    if when == "before":
        signal(context)
    child, grandchild = context.child("r1/2"), context.child().child()
    events = heard(level_of(grandchild))
    if when == "after":
        thread = threading.Thread(target=signal, args=(context,))
        thread.start()
        thread.join()
    assert events == ["True", "|"]
    for other in (child, grandchild):
        assert (other.is_stopped, other.is_killed) == (context.is_stopped, context.is_killed)
    assert (child.id, grandchild.id) == ("r1/2", "r1")
    assert (child.metadata, child.trace_headers) == (context.metadata, context.trace_headers)


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
