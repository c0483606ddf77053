"""One request that the runtime pulls, or that is pushed to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from time import monotonic
from typing import Any, Final, Self, TypeAlias

from operators.assembly import defer_to_loop, tokens_in, weak_callback
from rx_backend.context import RequestContext
from rx_backend.dynamo.context import ContextBridge
from rx_backend.dynamo.outlet import ClientLeft, Outlet
from rx_backend.dynamo.wire import wire_item
from rx_backend.protocols import Annotated
from rx_backend.stream import ResponseStream

__all__ = ("Admission", "ServedStream", "admit_all")

Admission: TypeAlias = Callable[[Any, Callable[[Exception], None]], AbstractContextManager[object]]
"""
Makes the context manager around a request, from the runtime's context and a function that ends the
request with an error.
"""

# An engine with items ready yields the event loop to others after so many, or so long.
_AT_A_TURN: Final = 32
_TURN_S: Final = 0.001
# The maximum number of turns from a request's arrival to its start.
_TURNS_TO_BEGIN: Final = 3


class ServedStream(AsyncIterator[dict[str, Any]]):
    """
    One request's items for the runtime, and the resources that the request holds.

    A kill by the runtime (a disconnect is one) closes it at once, whatever it waits for: the
    engine's set-up, the next item, or the runtime's next pull. So does dropping the last reference,
    in any thread. Neither waits for the garbage collector. On a decode worker a kill lets a pull
    wait for the first token, as an abort does (row A4). If items are pushed, the runtime pulls
    once, and gets no item.

    It is not an async generator: the task of a generator's pull refers to the generator, and an
    engine whose frame holds that task (``asyncio.timeout`` does) would keep its own stream alive.

    Args:
        context: The runtime's context of the request.
        open: Starts the request, with our context.
        admit: Makes the context manager around the request, which is entered first, on the event
            loop. Its function is :meth:`fail`, and does not keep the stream alive.
        decode: Whether this worker decodes for a prefill peer.
        arriving: The handler's requests that have arrived but not started. A stream whose engine
            never waits yields the event loop to them.
        outlet: Pushes the items; without one each pull returns one.
    """

    __slots__ = (
        "__weakref__",
        "_admit",
        "_arrival",
        "_arriving",
        "_bridge",
        "_context",
        "_decode",
        "_failure",
        "_has_token",
        "_is_killed",
        "_is_pulling",
        "_left",
        "_loop",
        "_open",
        "_opening",
        "_outlet",
        "_stream",
        "is_over",
    )

    def __init__(
        self,
        context: Any,
        open: Callable[[RequestContext], Awaitable[ResponseStream[Any]]],
        *,
        admit: Admission,
        decode: bool,
        arriving: set[object],
        outlet: Outlet | None = None,
    ) -> None:
        self._context = context
        self._open: Callable[[RequestContext], Awaitable[ResponseStream[Any]]] | None = open
        self._admit = admit
        self._decode = decode
        self._outlet = outlet
        self._arriving = arriving
        self._arrival = object()
        arriving.add(self._arrival)
        # The runtime calls the handler in a thread without an event loop.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._left = ExitStack()
        self._bridge: ContextBridge | None = None
        self._opening: asyncio.Task[Any] | None = None
        self._stream: ResponseStream[Any] | None = None
        self._failure: Exception | None = None
        self._is_pulling = False
        self._is_killed = False
        self._has_token = not decode
        self.is_over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> dict[str, Any]:
        """Return the next item; if items are pushed, push all of them, and end."""
        self._is_pulling = True
        outlet = self._outlet
        try:
            if self._loop is None and not self.is_over:
                await self._begin()
            wire = await (self._pull() if outlet is None else self._push(outlet))
            if wire is not None:
                return wire
        except (StopAsyncIteration, ClientLeft):
            pass
        except Exception as error:
            # One that is over was closed meanwhile, as by a kill.
            was_served = self._bridge is not None or self.is_over
            self.close()
            if not was_served:
                raise
            last = _failed_item(error)
            if outlet is None:
                return last
            await outlet.finish(last)
        except BaseException:
            self.close()
            raise
        finally:
            self._is_pulling = False
        # Everything is released before the client sees the end.
        self.close()
        if outlet is not None:
            outlet.close()
        raise StopAsyncIteration

    async def _pull(self) -> dict[str, Any] | None:
        """Return the next item to send; after a failure its error item, and None at the end."""
        while self._stream is not None:
            try:
                wire = self._wire(await anext(self._stream))
            except StopAsyncIteration:
                break
            if wire is not None:
                return wire
        return self._failed_item()

    async def _push(self, outlet: Outlet) -> None:
        """
        Push the items: at once after a wait, and those that were ready together in one turn.

        After its first item a request yields the event loop to others, for theirs.
        """
        stream: ResponseStream[object] | None = self._stream
        waits, ready, turn_ends = -1, 0, 0.0
        while self._stream is not None and stream is not None:
            try:
                wire = self._wire(await anext(stream))
            except StopAsyncIteration:
                break
            if wire is None:
                continue
            is_first, has_waited = waits < 0, stream.waits != waits
            if has_waited:
                waits, ready = stream.waits, 0
            elif ready < _AT_A_TURN and monotonic() < turn_ends:
                ready += 1
                outlet.send_soon(wire, stream.event_loop)
                continue
            is_full = outlet.send(wire)
            if is_first or not has_waited:
                await self._leave_turn()
                ready = 0
            turn_ends = monotonic() + _TURN_S
            if is_full:
                await outlet.room()
        await outlet.finish(self._failed_item())

    async def _leave_turn(self) -> None:
        """Yield the event loop to others, and to arriving requests until they have started."""
        await asyncio.sleep(0)
        for _ in range(_TURNS_TO_BEGIN):
            if not self._arriving:
                break
            await asyncio.sleep(0)

    def _failed_item(self) -> dict[str, Any] | None:
        """Return the error item of a request that :meth:`fail` has ended, once."""
        failure, self._failure = self._failure, None
        return None if failure is None else _failed_item(failure)

    def _wire(self, item: object) -> dict[str, Any] | None:
        """
        Return the wire form of the item; None on a killed decode worker before its first token.

        The pulling frame has no variable for the item: an error item's traceback refers to it.
        """
        if not self._has_token:
            if self._is_killed:
                self.close()
                return None
            self._has_token = tokens_in(item) > 0
        return wire_item(item)

    async def _begin(self) -> None:
        """Start the request; a kill in the meantime cancels that."""
        self._loop = asyncio.get_running_loop()
        self._arriving.discard(self._arrival)
        # What this refers to may outlive the request, until the runtime's next call frees it.
        start, self._open = self._open, None
        context, self._context = self._context, None
        assert start is not None  # noqa: S101 - for the type checker
        self._left.enter_context(self._admit(context, weak_callback(self.fail)))
        self._bridge = ContextBridge(
            context, decode=self._decode, on_kill=weak_callback(self._end_killed)
        )
        task = self._opening = asyncio.current_task()
        try:
            stream = await start(self._bridge.request_context)
        except BaseException:
            if self.is_over and not _is_cancelled_elsewhere(task):
                return
            raise
        self._opening = None
        if self.is_over:
            # The engine's set-up has caught the cancellation.
            _is_cancelled_elsewhere(task)
            stream.close()
        else:
            self._stream = stream

    def _end_killed(self) -> None:
        """Close, but on a decode worker let a pull continue up to the first token."""
        self._is_killed = True
        if self._has_token or not self._is_pulling or self._bridge is None:
            self.close()
        else:
            first_token = self._bridge.request_context.first_token()
            self._left.callback(first_token.listen(weak_callback(self.close)))

    def fail(self, error: Exception) -> None:
        """End the request with *error*, on the event loop; the engine's stream is dropped."""
        if not self.is_over:
            self._failure = error
            if self._bridge is not None:
                self._bridge.request_context.failure = error
            self.close()

    def close(self) -> None:
        """Release everything without waiting, on the event loop. Idempotent."""
        if self.is_over:
            return
        self.is_over = True
        bridge, self._bridge = self._bridge, None
        stream, self._stream = self._stream, None
        task, self._opening = self._opening, None
        with self._left:
            if bridge is None:
                return
            self._left.callback(bridge.close)
            # A dropped stream no longer causes an abort, so a pending signal is applied first.
            bridge.refresh()
            if stream is not None:
                stream.close()
            elif task is not None and task is not asyncio.current_task():
                task.cancel()

    async def aclose(self) -> None:
        """Release everything; closing the engine's stream continues in a task if it waits."""
        self.close()

    def __del__(self, defer: Callable[..., None] = defer_to_loop) -> None:
        self._arriving.discard(self._arrival)
        if self._loop is not None and not self.is_over:
            defer(self._loop, self.close)


def _failed_item(error: Exception) -> dict[str, Any]:
    return wire_item(Annotated.from_error(error))


def admit_all(*_: object) -> AbstractContextManager[None]:
    """Do nothing around a request."""
    return nullcontext()


def _is_cancelled_elsewhere(task: asyncio.Task[Any] | None) -> bool:
    """Undo our cancellation of *task*; return whether there is another one."""
    return task is not None and task.uncancel() > 0
