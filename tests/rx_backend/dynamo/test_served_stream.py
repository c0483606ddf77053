"""Everything that a request holds is released when its client is gone, without the collector."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, contextmanager
from typing import Any, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.dynamo import Handler, serving
from rx_backend.engine import EngineConfig, LLMEngine
from rx_backend.errors import Disconnected
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest
from rx_backend.testing import run_virtual
from rx_backend.worker import RequestGate
from tests.engines import virtual
from tests.spans import Spans

Chunks: TypeAlias = AsyncGenerator[LLMEngineOutput]

REQUEST = {"token_ids": [1]}
TOKENS = 4


class RuntimeContext:
    """A context as the runtime's, whose signals come on the event loop."""

    def __init__(self) -> None:
        self.metadata: dict[str, str] = {}
        self.signals: list[str] = []
        self.notices = 0
        self.waiters: list[asyncio.Future[bool]] = []

    def id(self) -> str:
        return "r1"

    def trace_headers(self) -> dict[str, str] | None:
        return None

    def is_stopped(self) -> bool:
        return bool(self.signals)

    def is_killed(self) -> bool:
        return "kill" in self.signals

    def async_killed_or_stopped(self) -> asyncio.Future[bool]:
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.waiters.append(waiter)
        if self.signals:
            waiter.set_result(True)
        return waiter

    def signal(self, name: str) -> None:
        """Signal; the runtime tells of the first one only."""
        self.signals.append(name)
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(True)

    def stop_generating(self) -> None:
        self.signal("stop")

    def notify_first_token(self) -> None:
        self.notices += 1


async def tokens() -> Chunks:
    """One token a second, then the terminal, at which the engine stays forever."""
    for number in range(TOKENS):
        await asyncio.sleep(1)
        yield LLMEngineOutput.token(number)
    await asyncio.sleep(1)
    yield LLMEngineOutput.stop()


async def plain() -> Chunks:
    async for chunk in tokens():
        yield chunk


async def in_timeout() -> Chunks:
    async with asyncio.timeout(1000):
        async for chunk in tokens():
            yield chunk


async def in_group() -> Chunks:
    async with asyncio.TaskGroup() as group:
        beside = group.create_task(asyncio.sleep(1000))
        async for chunk in tokens():
            yield chunk
        beside.cancel()


async def with_task() -> Chunks:
    task = asyncio.current_task()
    async for chunk in tokens():
        yield chunk
    del task


async def with_every_task() -> Chunks:
    tasks: list[object] = []
    async for chunk in tokens():
        tasks.append(asyncio.current_task())
        yield chunk
        tasks.append(asyncio.current_task())


async def swallows_once() -> Chunks:
    with_it = asyncio.current_task()
    try:
        async for chunk in tokens():
            yield chunk
    except asyncio.CancelledError:
        yield LLMEngineOutput.cancelled()
    del with_it


KINDS = [plain, in_timeout, in_group, with_task, with_every_task, swallows_once]


class Engine(LLMEngine):
    """
    Plays one kind of stream, deaf to every stop.

    Attributes:
        open: How many streams are open.
        aborts: How many aborts came.
    """

    def __init__(self, kind: Callable[[], Chunks], set_up_s: float = 0.0) -> None:
        self._kind = kind
        self._set_up_s = set_up_s
        self.open = 0
        self.aborts = 0

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model="m")

    async def generate(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        held = asyncio.current_task()
        await asyncio.sleep(self._set_up_s)
        del held
        return self._stream()

    async def _stream(self) -> Chunks:
        self.open += 1
        try:
            async with aclosing(self._kind()) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self.open -= 1

    async def abort(self, context: RequestContext) -> None:
        self.aborts += 1


@contextmanager
def without_collector() -> Generator[None]:
    """What is released in the block is released without the collector."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Sender:
    """Keeps what is pushed; refuses it once the client is gone."""

    def __init__(self, seen: list[dict[str, Any]]) -> None:
        self._seen = seen
        self.is_gone = self.is_closed = False

    def send(self, obj: Any) -> None:
        if self.is_gone or self.is_closed:
            raise RuntimeError("response stream is closed")
        self._seen.append(obj)

    def close(self) -> None:
        self.is_closed = True
        self.on_close()

    def on_close(self) -> None: ...


EITHER_WAY = pytest.mark.parametrize("pushed", [False, True])


def sender_to(seen: list[dict[str, Any]], pushed: bool) -> dict[str, Sender]:
    """Return what the runtime hands to a handler besides the context."""
    return {"response_sender": Sender(seen)} if pushed else {}


async def pull_all(held: list[Any], seen: list[dict[str, Any]], read_s: float) -> None:
    """Pull as the runtime does: each pull is a task of its own, and takes its time."""
    while held:
        try:
            seen.append(await asyncio.ensure_future(anext(held[0])))
        except StopAsyncIteration:
            return
        await asyncio.sleep(read_s)


def leave(
    engine: Engine, at_s: float, *, how: str, read_s: float = 0.0, pushed: bool = False
) -> list[dict[str, Any]]:
    """Serve one request, whose client leaves at that time; give what the runtime was handed."""
    seen: list[dict[str, Any]] = []

    async def main() -> None:
        gate = RequestGate(lambda: RuntimeError("closed"))
        context = RuntimeContext()
        handler: Handler = serving(EngineAdapter(engine), admit=gate.admit)
        sender = sender_to(seen, pushed)
        held: list[Any] = [handler(REQUEST, context, **sender)]
        pulling = asyncio.create_task(pull_all(held, seen, read_s))
        await asyncio.sleep(at_s)
        if how == "lost":
            held.clear()
            pulling.cancel()
        elif how == "refused":
            sender["response_sender"].is_gone = True
            await asyncio.sleep(TOKENS + 4)
        else:
            for name in how.split():
                context.signal(name)
                await asyncio.sleep(0.01)
        await asyncio.sleep(1.1 if how == "stop kill" else 0.1)
        assert engine.open == 0
        assert len(gate) == 0
        await gate.idle()
        assert asyncio.all_tasks() <= {asyncio.current_task(), pulling}
        await asyncio.wait([pulling])

    with without_collector():
        run_virtual(main())
    return seen


MOMENTS = st.one_of(st.integers(0, TOKENS + 3), st.floats(0.0, TOKENS + 3.0))


@pytest.mark.rows("A2", "S7")
@given(
    kind=st.sampled_from(KINDS),
    at_s=MOMENTS,
    set_up_s=st.sampled_from([0.0, 1.0, 2.5]),
    read_s=st.sampled_from([0.0, 0.3, 2.0, 100.0]),
    way=st.sampled_from(
        [(how, pushed) for how in ["kill", "stop kill", "kill stop"] for pushed in [False, True]]
        + [("lost", False), ("refused", True)]
    ),
)
def test_a_disconnected_client_leaks_nothing(
    kind: Callable[[], Chunks], at_s: float, set_up_s: float, read_s: float, way: tuple[str, bool]
) -> None:
    """Whatever the engine holds, and whatever the request waits for, and without the collector."""
    engine = Engine(kind, set_up_s)
    how, pushed = way
    seen = leave(engine, at_s, how=how, read_s=read_s, pushed=pushed)
    assert engine.aborts <= (how not in {"lost", "refused"})
    assert len(seen) <= TOKENS + 1


@pytest.mark.rows("S7", "P7")
@pytest.mark.parametrize("end", ["whole", "kill", "refused", "failed"])
@EITHER_WAY
def test_served_requests_leave_no_garbage(end: str, pushed: bool) -> None:
    """What a request refers to is freed at its end, without the collector."""
    alive: list[weakref.ref[RequestContext]] = []

    class Watched(Engine):
        async def generate(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
            alive.append(weakref.ref(context))
            return self._stream()

    async def broken() -> Chunks:
        yield LLMEngineOutput.token(1)
        raise LookupError("gone")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        engine = Watched(broken if end == "failed" else plain)
        handler = serving(EngineAdapter(engine))
        for _ in range(10):
            context, seen = RuntimeContext(), list[dict[str, Any]]()
            sender = sender_to(seen, pushed)
            if end == "kill":
                loop.call_later(2.5, context.signal, "kill")
            elif end == "refused" and pushed:
                loop.call_later(2.5, setattr, sender["response_sender"], "is_gone", True)
            await pull_all([handler(REQUEST, context, **sender)], seen, 0.0)
            assert not pushed or sender["response_sender"].is_closed
            del context
        await asyncio.sleep(1)
        assert [ref() for ref in alive if ref() is not None] == []

    with without_collector():
        run_virtual(main())
    assert len(alive) == 10


@pytest.mark.rows("A2", "A4")
@pytest.mark.parametrize(("at_s", "tokens_seen"), [(0.5, 0), (1.5, 1), (2.5, 2)])
@EITHER_WAY
def test_a_kill_on_a_decode_worker_waits_for_the_first_token(
    at_s: float, tokens_seen: int, pushed: bool
) -> None:
    """
    The transfer continues to its first token, which nobody gets, but the runtime is told.

    After it the kill is at once.
    """
    ended_at: list[float] = []

    async def main() -> None:
        engine = Engine(with_task)
        context = RuntimeContext()
        seen: list[dict[str, Any]] = []
        handler = serving(EngineAdapter(engine, "decode"))
        stream = handler(REQUEST, context, **sender_to(seen, pushed))
        pulling = asyncio.create_task(pull_all([stream], seen, 0.0))
        await asyncio.sleep(at_s)
        context.signal("kill")
        await pulling
        ended_at.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0)
        assert (engine.open, engine.aborts, len(seen)) == (0, 1, tokens_seen)
        assert context.notices == 1

    run_virtual(main())
    assert ended_at == [pytest.approx(max(at_s, 1.0))]


@pytest.mark.rows("C4", "A4")
@EITHER_WAY
@virtual
async def test_a_first_token_notification_releases_the_kill(pushed: bool) -> None:
    """An engine that notifies its first token without a chunk is closed then."""

    class Notifying(Engine):
        async def generate(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
            asyncio.get_running_loop().call_later(0.5, context.notify_first_token)
            return self._stream()

    engine = Notifying(in_timeout)
    context = RuntimeContext()
    handler = serving(EngineAdapter(engine, "decode"))
    stream = handler(REQUEST, context, **sender_to([], pushed))
    pulling = asyncio.create_task(pull_all([stream], [], 0.0))
    await asyncio.sleep(0.2)
    context.signal("kill")
    await asyncio.sleep(0.2)
    assert engine.open == 1
    await pulling
    assert asyncio.get_running_loop().time() == pytest.approx(0.5)
    assert (engine.open, engine.aborts) == (0, 1)


@pytest.mark.rows("A2", "A6")
@EITHER_WAY
@virtual
async def test_a_stop_leaves_the_end_to_the_engine(pushed: bool) -> None:
    """Unlike a kill, it aborts the request, whose stream continues."""
    engine = Engine(plain)
    context = RuntimeContext()
    seen: list[dict[str, Any]] = []
    stream = serving(EngineAdapter(engine))(REQUEST, context, **sender_to(seen, pushed))
    asyncio.get_running_loop().call_later(1.5, context.stop_generating)
    await pull_all([stream], seen, 0.0)
    assert (engine.aborts, len(seen)) == (1, TOKENS + 1)


@pytest.mark.rows("S5", "S7")
@EITHER_WAY
@virtual
async def test_a_set_up_that_swallows_the_kill_is_closed_afterwards(pushed: bool) -> None:
    """It ends when it likes, and its stream is never pulled; the request was over long before."""

    class Stubborn(Engine):
        async def generate(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
            try:
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                await asyncio.sleep(5)
            return self._stream()

    gate = RequestGate(lambda: RuntimeError("closed"))
    context = RuntimeContext()
    seen: list[dict[str, Any]] = []
    handler = serving(EngineAdapter(Stubborn(plain)), admit=gate.admit)
    stream = handler(REQUEST, context, **sender_to(seen, pushed))
    pulling = asyncio.create_task(pull_all([stream], seen, 0.0))
    await asyncio.sleep(1)
    context.signal("kill")
    await asyncio.sleep(0)
    await gate.idle()
    assert asyncio.get_running_loop().time() == pytest.approx(1.0)
    await pulling
    assert asyncio.get_running_loop().time() == pytest.approx(6.0)
    assert seen == []


@pytest.mark.rows("S6")
@EITHER_WAY
@virtual
async def test_a_cancelled_pull_stays_cancelled(pushed: bool) -> None:
    """A kill does not hide that somebody else cancelled the task that pulls."""
    context = RuntimeContext()
    handler = serving(EngineAdapter(Engine(plain, 3.0)))
    stream = handler(REQUEST, context, **sender_to([], pushed))
    pulling = asyncio.ensure_future(anext(aiter(stream)))
    await asyncio.sleep(1)
    context.signal("kill")
    pulling.cancel()
    await asyncio.wait([pulling])
    assert pulling.cancelled()


@pytest.mark.rows("A2", "S7")
@virtual
async def test_a_collected_stream_applies_the_last_signal() -> None:
    """The runtime may let go of it before its signal arrives, and the engine is aborted all the same."""
    engine, context = Engine(in_timeout), RuntimeContext()
    held: list[Any] = [serving(EngineAdapter(engine))(REQUEST, context)]
    await anext(held[0])
    context.signals.append("kill")
    held.clear()
    await asyncio.sleep(0.01)
    assert (engine.open, engine.aborts) == (0, 1)
    assert all(waiter.cancelled() for waiter in context.waiters)


def test_a_stream_collected_in_a_thread_is_closed_on_its_loop() -> None:
    """The runtime's threads let go of streams; an idle loop wakes up for that."""

    async def main() -> None:
        gate = RequestGate(lambda: RuntimeError("closed"))
        engine = Engine(plain)
        held: list[Any] = [
            serving(EngineAdapter(engine), admit=gate.admit)(REQUEST, RuntimeContext())
        ]
        await asyncio.wait_for(anext(held[0]), 5)
        thread = threading.Thread(target=held.clear)
        waiting = asyncio.create_task(gate.idle())
        await asyncio.sleep(0)
        thread.start()
        await asyncio.wait_for(waiting, 5)
        thread.join()
        while engine.open:  # noqa: ASYNC110 - its end tells nobody
            await asyncio.sleep(0)

    asyncio.run(main(), debug=True)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
@pytest.mark.parametrize("kind", KINDS)
@EITHER_WAY
@virtual
async def test_eager_tasks_change_nothing(kind: Callable[[], Chunks], pushed: bool) -> None:
    """A loop whose tasks begin at once serves, and releases, as any other."""
    factory: Any = getattr(asyncio, "eager_task_factory", None)
    asyncio.get_running_loop().set_task_factory(factory)
    engine, context, seen = Engine(kind), RuntimeContext(), list[dict[str, Any]]()
    stream = serving(EngineAdapter(engine))(REQUEST, context, **sender_to(seen, pushed))
    pulling = asyncio.create_task(pull_all([stream], seen, 0.0))
    await asyncio.sleep(2.5)
    context.signal("kill")
    await pulling
    await asyncio.sleep(0.01)
    assert (engine.open, len(seen)) == (0, 2)


@pytest.mark.rows("S7")
@pytest.mark.parametrize("kind", [plain, in_timeout])
@virtual
async def test_everything_is_released_when_the_client_sees_the_end(
    kind: Callable[[], Chunks],
) -> None:
    """Where items are pushed as where they are pulled."""
    engine, gate = Engine(kind), RequestGate(lambda: RuntimeError("closed"))
    sender, held = Sender([]), list[tuple[int, int]]()
    sender.on_close = lambda: held.append((len(gate), engine.aborts))
    handler = serving(EngineAdapter(engine), admit=gate.admit)
    await pull_all([handler(REQUEST, RuntimeContext(), response_sender=sender)], [], 0.0)
    assert held == [(0, 0)]


@EITHER_WAY
@virtual
async def test_a_rejected_request_raises(pushed: bool) -> None:
    """The runtime answers with that error, so the stream is not ended as a whole one."""
    seen: list[dict[str, Any]] = []
    gate = RequestGate(lambda: ConnectionError("shutting down"))
    gate.close()
    sender = sender_to(seen, pushed)
    stream = serving(EngineAdapter(Engine(plain)), admit=gate.admit)(
        REQUEST, RuntimeContext(), **sender
    )
    with pytest.raises(ConnectionError, match="shutting down"):
        await pull_all([stream], seen, 0.0)
    assert seen == []
    assert not pushed or not sender["response_sender"].is_closed


TEXTS = st.text(st.characters(codec=None, exclude_categories=())) | st.text("\ud83d\ude00aé")


@pytest.mark.rows("S2")
@given(text=TEXTS, last=st.booleans())
@virtual
async def test_text_that_can_not_be_encoded_is_replaced(text: str, last: bool) -> None:
    """A surrogate alone becomes U+FFFD, wherever it stands; all other text is as it was."""
    chunk = LLMEngineOutput([1], text=text, tokens=[text])
    if last:
        chunk = LLMEngineOutput(
            [1], text=text, tokens=[text], finish_reason=LLMEngineOutput.error(text).finish_reason
        )

    class Says(Engine):
        async def _stream(self) -> Chunks:
            yield chunk
            if not last:
                raise RuntimeError(text)

    seen: list[dict[str, Any]] = []
    await pull_all([serving(EngineAdapter(Says(plain)))(REQUEST, RuntimeContext())], seen, 0.0)
    expected = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert seen[0]["text"] == expected
    assert seen[0]["tokens"] == [expected]
    repr(seen).encode()
    str(seen[-1].get("error")).encode()
    str(seen[-1].get("finish_reason")).encode()


@pytest.mark.rows("E7", "S6", "O2", "P4")
@pytest.mark.parametrize("pushed", [False, True])
@pytest.mark.parametrize(("at_s", "kind"), [(1, "setup_failed"), (6.5, "Backend(Disconnected)")])
def test_a_request_that_is_failed_ends_with_that_error(
    spans: Spans, *, pushed: bool, at_s: float, kind: str
) -> None:
    """In the engine's set-up and in mid-stream, at once; the span says so, it was no drop."""

    class Slow(Engine):
        async def generate(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
            await asyncio.sleep(5)
            return self._stream()

    async def main() -> None:
        gate = RequestGate(lambda: RuntimeError("closed"))
        seen: list[dict[str, Any]] = []
        adapter = EngineAdapter(Slow(plain), tracer=spans.tracer)
        handler = serving(adapter, admit=gate.admit)
        stream = handler(REQUEST, RuntimeContext(), **sender_to(seen, pushed))
        pulling = asyncio.create_task(pull_all([stream], seen, 0.0))
        await asyncio.sleep(at_s)
        gate.fail_all(Disconnected("the engine is lost"))
        await pulling
        assert asyncio.get_running_loop().time() == pytest.approx(at_s)
        assert [chunk.get("token_ids") for chunk in seen[:-1]] == ([[0]] if at_s > 6 else [])
        assert seen[-1]["event"] == "error"
        assert "the engine is lost" in str(seen[-1])
        await gate.idle()

    run_virtual(main())
    span = spans.one()
    told = span.attributes or {}
    assert (told["error_kind"], told["error.type"]) == (kind, "Disconnected")
    assert span.status.description == kind
    assert "finish_reason" not in told
    if at_s > 6:
        assert (told["output_tokens"], told["cancelled"]) == (1, False)
