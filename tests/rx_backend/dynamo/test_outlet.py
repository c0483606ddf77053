"""Items are pushed whole and in order, and a client that reads nothing blocks no event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.dynamo import serving
from rx_backend.dynamo.outlet import ClientLeft, Outlet
from rx_backend.engine import EngineConfig, LLMEngine
from rx_backend.errors import Unknown
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest
from tests.engines import real_time
from tests.rx_backend.dynamo._runtime import NEEDS, cluster, received, settled
from tests.rx_backend.dynamo.test_served_stream import RuntimeContext

# More chunks than all the buffers to a client hold, and the characters of one.
MANY, SIZE = 1_000_000, 1_000


class Client:
    """
    A sender that encodes as the runtime does, and blocks while its buffers are full.

    Attributes:
        frames: What was sent.
        sent_in: The threads that sent it.
        room: How many bytes fit in; more makes the sender wait until the client reads.
    """

    def __init__(self, room: float = float("inf")) -> None:
        self.frames: list[dict[str, Any]] = []
        self.sent_in: set[int] = set()
        self.room = room
        self.reads = threading.Event()
        self.is_gone = self.is_closed = False

    def send(self, obj: Any) -> None:
        try:
            self.room -= len(msgspec.msgpack.encode(obj)) + 40
        except TypeError as error:
            raise ValueError(str(error)) from error
        if self.room < 0:
            assert self.reads.wait(10)
        if self.is_gone or self.is_closed:
            raise RuntimeError("response stream is closed")
        self.sent_in.add(threading.get_ident())
        self.frames.append(obj)

    def close(self) -> None:
        self.is_closed = True

    @property
    def tokens(self) -> list[int]:
        return [token for frame in self.frames for token in frame["token_ids"]]


def token(number: int, **fields: Any) -> dict[str, Any]:
    return {"token_ids": [number], **fields}


def wire_with(fields: dict[str, Any]) -> dict[str, Any]:
    return {"token_ids": [], **fields}


FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "index": st.integers(0, 1),
    "text": st.text(max_size=3),
    "log_probs": st.just([-1.0]),
    "finish_reason": st.just("stop"),
}
WIRES = st.builds(wire_with, st.fixed_dictionaries({}, optional=FIELDS))


@pytest.mark.rows("S1", "S2")
@given(wires=st.lists(WIRES, max_size=12), flushes=st.sets(st.integers(0, 12)), merge=st.booleans())
@real_time
async def test_each_answer_is_complete_merged_or_not(
    wires: list[dict[str, Any]], flushes: set[int], merge: bool
) -> None:
    """Tokens and text of each answer come in order, and what is no plain chunk stays as it is."""

    def whole(sent: list[dict[str, Any]], index: int | None) -> tuple[list[int], str, list[Any]]:
        own = [wire for wire in sent if wire.get("index") == index]
        others = [w for w in own if not w.keys() <= {"token_ids", "index", "text"}]
        text = "".join(wire.get("text", "") for wire in own)
        return [token for wire in own for token in wire["token_ids"]], text, others

    client = Client()
    outlet = Outlet(client, merge=merge)
    for number, wire in enumerate(wires):
        wire["token_ids"].append(number)
    expected = msgspec.convert(msgspec.to_builtins(wires), list[dict[str, Any]])
    loop = asyncio.get_running_loop()
    for number, wire in enumerate(wires):
        if number in flushes:
            outlet.send(wire)
        else:
            outlet.send_soon(wire, loop)
    await outlet.finish()
    outlet.close()
    for index in (None, 0, 1):
        assert whole(client.frames, index) == whole(expected, index)
    assert merge or client.frames == expected
    assert client.is_closed


@real_time
async def test_items_ready_in_one_iteration_are_one_frame() -> None:
    """It waits for no longer than that iteration."""
    client = Client()
    outlet = Outlet(client, merge=True)
    for first in (0, 500):
        numbers = [*range(first, first + 500)]
        for number in numbers:
            outlet.send_soon(token(number, text="x"), asyncio.get_running_loop())
        assert client.tokens == [*range(first)]
        assert outlet.is_full
        await asyncio.sleep(0)
        assert client.frames[-1] == {"token_ids": numbers, "text": "x" * 500}
        assert not outlet.is_full
    assert len(client.frames) == 2


@pytest.mark.rows("S4")
@pytest.mark.parametrize("size", [0, 2_000])
@real_time
async def test_a_client_that_does_not_read_blocks_only_a_thread(size: int) -> None:
    """The loop continues, what waits is bounded, and all of it arrives when the client reads."""
    client = Client(room=100_000)
    outlet = Outlet(client, merge=False)
    put = 0

    async def push() -> None:
        nonlocal put
        for put in range(5_000):
            outlet.send(token(put, tokens=["x" * size]))
            if outlet.is_full:
                await outlet.room()
        await outlet.finish()
        outlet.close()

    pushing = asyncio.create_task(push())
    # The thread is in its last batch, and the next one waits.
    while not (outlet.is_full and client.room < 0):  # noqa: ASYNC110 - the loop goes on
        await asyncio.sleep(0.001)
    stuck_at = put
    await asyncio.sleep(0.01)
    assert put == stuck_at < 2_500
    assert not pushing.done()
    client.reads.set()
    await pushing
    assert client.tokens == [*range(5_000)]
    assert client.is_closed
    assert len(client.sent_in) > 1


async def keep_sending(outlet: Outlet, *wires: dict[str, Any]) -> None:
    while True:
        for wire in wires:
            outlet.send(dict(wire))
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("surely", [True, False])
@real_time
async def test_a_disconnect_is_detected_at_the_next_item(surely: bool) -> None:
    """Whichever thread sends it; and again by each item after it."""
    client = Client()
    outlet = Outlet(client, merge=True)
    if not surely:
        outlet.send(token(1, text="x" * 100_000))
    client.is_gone = True
    for _ in range(2):
        with pytest.raises(ClientLeft):
            await keep_sending(outlet, token(2))
    await outlet.finish(token(3))
    outlet.close()
    assert client.is_closed


@pytest.mark.parametrize("surely", [True, False])
@real_time
async def test_an_item_that_can_not_be_encoded_fails_the_request(surely: bool) -> None:
    """What is sent after it, such as the error item, arrives."""
    client = Client()
    outlet = Outlet(client, merge=True)
    if not surely:
        outlet.send(token(1, text="x" * 100_000))
    with pytest.raises(Unknown, match=r"^BackendUnknown: an item could not be encoded"):
        await keep_sending(outlet, token(2, engine_data=object()))
    await outlet.finish(token(3))
    outlet.close()
    assert client.tokens[-1] == 3
    assert client.is_closed


@real_time
async def test_items_after_an_unencodable_one_are_replaced_by_the_error() -> None:
    """It could not be encoded either, and would take the error item with it."""
    client = Client(room=150_000)
    outlet = Outlet(client, merge=True)
    for number in (1, 2):
        outlet.send(token(number, text="x" * 100_000))
    bad = token(3, engine_data=object())
    outlet.send(dict(bad))
    client.reads.set()
    with pytest.raises(Unknown):
        await keep_sending(outlet, bad)
    await outlet.finish(token(4))
    assert client.tokens == [1, 2, 4]


class FastEngine(LLMEngine):
    """Gives so many chunks as fast as it can, fewer where it is told to end, then the terminal."""

    def __init__(self) -> None:
        self.made: dict[str, int] = {}
        self.closed: list[str] = []
        self.is_ending = False

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model="pouring")

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        chunks, size = request.token_ids
        try:
            for number in range(chunks):
                if self.is_ending:
                    break
                self.made[context.id] = number + 1
                yield LLMEngineOutput([number], text="x" * size)
            yield LLMEngineOutput.stop()
        finally:
            self.closed.append(context.id)


@pytest.mark.rows("S1", "S4", "S7")
@pytest.mark.parametrize("coalesce", [True, False])
@NEEDS
@real_time
async def test_a_client_that_never_reads_does_not_affect_others(coalesce: bool) -> None:
    """On the real runtime: others get their tokens, its own engine waits, and it gets all of its."""
    engine = FastEngine()

    async with cluster() as joined:
        client = await joined.serve(serving(EngineAdapter(engine), coalesce=coalesce))
        never = await client.round_robin({"token_ids": [MANY, SIZE]})
        await settled(lambda: engine.made)
        (waiting,) = engine.made
        before = 0
        while engine.made[waiting] > before:
            before = engine.made[waiting]
            chunks = await received(client.round_robin({"token_ids": [100, SIZE]}))
            assert sum(len(chunk["token_ids"]) for chunk in chunks) == 100
        assert before < MANY
        assert waiting not in engine.closed
        engine.is_ending = True
        got = [number async for item in never for number in item.data()["token_ids"]]
        assert got == [*range(engine.made[waiting])]
        await settled(lambda: waiting in engine.closed)


@pytest.mark.rows("S2", "S7")
@real_time
async def test_each_item_is_sent_at_once() -> None:
    """An item that the engine had to be waited for waits for no other one."""
    client, at = Client(), list[int]()

    class Slow(FastEngine):
        async def generate(
            self, request: PreprocessedRequest, context: RequestContext
        ) -> AsyncGenerator[LLMEngineOutput]:
            for number in range(3):
                await asyncio.sleep(0)
                at.append(len(client.frames))
                yield LLMEngineOutput([number])
            at.append(len(client.frames))
            yield LLMEngineOutput.stop()

    handler = serving(EngineAdapter(Slow()))
    async for _ in handler({"token_ids": [1]}, RuntimeContext(), client):
        raise AssertionError("where items are pushed none is yielded")
    assert at == [0, 1, 2, 3]
    assert client.tokens == [0, 1, 2]
    assert client.frames[-1]["finish_reason"] == "stop"


@pytest.mark.rows("S6", "S7")
@real_time
async def test_an_unencodable_item_of_a_killed_request_is_ignored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was still to be sent when the kill came: the stream ends, and is closed."""
    monkeypatch.setattr("rx_backend.dynamo.served_stream._TURN_S", float("inf"))
    client, runtime = Client(), RuntimeContext()

    class Killed(FastEngine):
        async def generate(
            self, request: PreprocessedRequest, context: RequestContext
        ) -> AsyncGenerator[LLMEngineOutput]:
            yield LLMEngineOutput([0])
            yield LLMEngineOutput([1], engine_data={"number": 1 << 90})
            runtime.signal("kill")
            await asyncio.Event().wait()

    async for _ in serving(EngineAdapter(Killed()))({"token_ids": [1]}, runtime, client):
        raise AssertionError("where items are pushed none is yielded")
    assert [frame.get("event") for frame in client.frames] == [None, "error"]
    assert client.is_closed


@real_time
async def test_an_engine_that_never_waits_yields_to_other_tasks() -> None:
    """From its first items on."""
    client, seen = Client(), list[int]()
    handler = serving(EngineAdapter(FastEngine()))

    async def watch() -> None:
        while not client.is_closed:
            seen.append(len(client.tokens))
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    async for _ in handler({"token_ids": [1_000, 0]}, RuntimeContext(), client):
        pass
    await watching
    assert seen[0] <= 2
    assert len(seen) >= 1_000 / 64
    assert client.tokens == [*range(1_000)]
    assert client.frames[-1]["finish_reason"] == "stop"


@real_time
async def test_a_new_request_starts_before_others_continue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stream whose engine never waits does not get far ahead; a collected one delays no other."""
    monkeypatch.setattr("rx_backend.dynamo.served_stream._TURN_S", float("inf"))

    handler = serving(EngineAdapter(FastEngine()), coalesce=False)
    loop, tasks = asyncio.get_running_loop(), list[asyncio.Task[None]]()

    async def pull(stream: AsyncIterator[Any]) -> None:
        async for _ in stream:
            pass

    def come(client: Client) -> None:
        """Call the handler, and pull an iteration later, as the runtime does."""
        stream = handler({"token_ids": [500, 0]}, RuntimeContext(), client)
        loop.call_soon(lambda: tasks.append(loop.create_task(pull(stream))))

    async def turns_until(condition: Callable[[], object]) -> int:
        turns = 0
        while not condition():
            await asyncio.sleep(0)
            turns += 1
        return turns

    early, late = Client(), Client()
    come(early)
    await turns_until(lambda: len(early.tokens) > 50)
    before = len(early.tokens)
    come(late)
    await turns_until(lambda: late.frames)
    assert len(early.tokens) - before <= 2
    before = len(early.tokens)
    handler({"token_ids": [1, 0]}, RuntimeContext(), Client())
    assert await turns_until(lambda: len(early.tokens) == 500) < (500 - before) / 16
    await asyncio.gather(*tasks)


@real_time
async def test_a_burst_gets_its_first_tokens_before_anything_else() -> None:
    """The terminals come behind them, though the engines have them ready."""
    sent: list[str] = []

    class Journal(Client):
        def send(self, obj: Any) -> None:
            sent.append("end" if "finish_reason" in obj else "token")

    async def ask() -> None:
        async for _ in handler({"token_ids": [1, 0]}, RuntimeContext(), Journal()):
            pass

    handler = serving(EngineAdapter(FastEngine()))
    await asyncio.gather(*[ask() for _ in range(20)])
    assert sent == ["token"] * 20 + ["end"] * 20
