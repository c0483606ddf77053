"""The bridge between a context of the real runtime and ours."""

from __future__ import annotations

import asyncio
import weakref
from typing import Any

import pytest

from rx_backend.dynamo import ContextBridge
from rx_backend.errors import InvalidArgument
from tests.engines import real_time
from tests.rx_backend.dynamo._runtime import NEEDS, new_context

pytestmark = NEEDS


@pytest.mark.rows("C1", "C2")
@real_time
async def test_a_stop_by_the_runtime_sets_our_signal() -> None:
    """Waiters are notified, the request's identity is the same, and no task is made for it."""
    theirs = new_context("r1", {"tenant": "t"})
    bridge = ContextBridge(theirs, decode=False)
    ours = bridge.request_context
    assert (ours.id, dict(ours.metadata), dict(ours.trace_headers)) == ("r1", {"tenant": "t"}, {})
    assert not ours.is_stopped
    assert asyncio.all_tasks() == {asyncio.current_task()}
    theirs.stop_generating()
    await ours.stopped()
    assert ours.is_stopped
    assert not ours.is_killed
    bridge.close()


@pytest.mark.rows("C1")
@real_time
async def test_a_signal_before_the_bridge_counts() -> None:
    """A request that is stopped before we see it is stopped."""
    theirs = new_context()
    theirs.stop_generating()
    bridge = ContextBridge(theirs, decode=False)
    await bridge.request_context.stopped()
    bridge.close()


@pytest.mark.rows("A6")
@real_time
async def test_a_closed_bridge_waits_for_nothing() -> None:
    """A signal after the end of the request reaches no listener; closing twice is harmless."""
    theirs = new_context()
    bridge = ContextBridge(theirs, decode=False)
    bridge.close()
    bridge.close()
    heard = theirs.async_killed_or_stopped()
    theirs.stop_generating()
    await heard
    assert not bridge.request_context.is_stopped


@real_time
async def test_a_refresh_applies_pending_signals_at_once() -> None:
    """What the runtime has signalled counts before the loop has notified any listener."""
    theirs = new_context()
    bridge = ContextBridge(theirs, decode=False)
    theirs.stop_generating()
    bridge.refresh()
    assert bridge.request_context.is_stopped
    bridge.close()


class Real:
    """A real context, for those that look over its shoulder."""

    def __init__(self) -> None:
        self._context = new_context()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


async def forgotten(what: weakref.ref[Any]) -> None:
    """Wait until nobody holds it; the test's timeout is the limit."""
    while what() is not None:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0)


class Waited(Real):
    """One that shows the future by which it tells of a signal."""

    told: asyncio.Future[bool]

    def async_killed_or_stopped(self) -> asyncio.Future[bool]:
        self.told = self._context.async_killed_or_stopped()
        return self.told


@pytest.mark.rows("A6")
@real_time
async def test_a_signal_in_the_iteration_of_the_close_is_ignored() -> None:
    """A late notification to a closed bridge keeps nothing alive."""
    theirs = Waited()
    bridge = ContextBridge(theirs, decode=False)
    theirs.stop_generating()
    while not theirs.told.done():  # noqa: ASYNC110 - a waiter would be told after the bridge
        await asyncio.sleep(0)
    bridge.close()
    ours = weakref.ref(bridge.request_context)
    assert not bridge.request_context.is_stopped
    del bridge
    await forgotten(ours)


class Freeing(Real):
    """One that closes the bridge when it is asked, as the runtime lets go of streams in any call."""

    bridge: ContextBridge | None = None

    def is_killed(self) -> bool:
        if self.bridge is not None:
            self.bridge.close()
        return self._context.is_killed()


@pytest.mark.rows("A6")
@real_time
async def test_a_bridge_closed_during_a_poll_stops_polling() -> None:
    """A call into the runtime may free the very stream that the call is made for."""
    theirs = Freeing()
    bridge = theirs.bridge = ContextBridge(theirs, decode=False)
    theirs.stop_generating()
    await bridge.request_context.stopped()
    ours = weakref.ref(bridge.request_context)
    theirs.bridge = None
    del bridge
    await forgotten(ours)


class Counted(Real):
    """One that counts its first-token notices, which show nowhere on the real one."""

    notices = 0

    def notify_first_token(self) -> None:
        self._context.notify_first_token()
        self.notices += 1


@pytest.mark.rows("C4")
@pytest.mark.parametrize(("decode", "notices"), [(True, 1), (False, 0)])
@real_time
async def test_a_decode_worker_reports_the_first_token_once(decode: bool, notices: int) -> None:
    """The runtime gets our notification, and only where it means something."""
    theirs = Counted()
    bridge = ContextBridge(theirs, decode=decode)
    bridge.request_context.notify_first_token()
    bridge.request_context.notify_first_token()
    bridge.close()
    assert theirs.notices == notices


@real_time
async def test_an_invalid_context_is_named() -> None:
    """A wrong argument is a typed error."""
    with pytest.raises(InvalidArgument, match=r"context: .* got dict"):
        ContextBridge({}, decode=False)
