"""Engines made with the helpers: order, back-pressure, stops, drops, and no thread left."""

from __future__ import annotations

import asyncio
import contextvars
import random
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator
from contextlib import aclosing
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from rx_backend import (
    Disconnected,
    EngineAdapter,
    EngineConfig,
    EngineShutdown,
    FinishReason,
    InvalidArgument,
    LLMEngine,
    LLMEngineOutput,
    PreprocessedRequest,
    RequestContext,
    Unknown,
)
from rx_backend.engines.chunk_queue import ChunkQueue
from rx_backend.engines.in_thread import iterate_in_thread
from rx_backend.engines.inbox import ThreadInbox
from rx_backend.engines.step_sequence import StepSequence
from rx_backend.engines.step_thread import StepThread
from rx_backend.protocols import SamplingOptions, StopConditions, usage
from rx_backend.testing import run_conformance
from tests.engines import real_time, virtual

REQUEST = PreprocessedRequest(token_ids=[1, 2, 3])
LONG_S = 10.0


@pytest.fixture(autouse=True)
def threads_end() -> Generator[None]:
    """See that the threads of a test end."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(LONG_S)
        assert not thread.is_alive(), thread


def tokens(number: int) -> Iterator[LLMEngineOutput]:
    """Yield that many tokens and the terminal."""
    for token in range(number):
        yield LLMEngineOutput.token(token)
    yield LLMEngineOutput.stop()


async def read(chunks: AsyncGenerator[LLMEngineOutput]) -> list[tuple[list[int], str]]:
    return [(chunk.token_ids, str(chunk.finish_reason)) async for chunk in chunks]


# ------------------------------------------------------------------ a blocking iterator


async def inbox_stream(
    make: Callable[[], Iterator[LLMEngineOutput]],
    request: PreprocessedRequest,
    context: RequestContext,
) -> AsyncGenerator[LLMEngineOutput]:
    """Stream what a thread puts into an inbox."""

    def run(inbox: ThreadInbox) -> None:
        for chunk in make():
            if not inbox.put(chunk):
                return
        inbox.end()

    with ThreadInbox(request, context) as inbox:
        threading.Thread(target=run, args=(inbox,)).start()
        async for chunk in inbox:
            yield chunk


@pytest.mark.rows("E3", "E4")
@pytest.mark.parametrize("stream", [iterate_in_thread, inbox_stream])
@pytest.mark.parametrize("ended", [(), (0,), (1,), (1, 0)], ids=str)
@real_time
async def test_each_open_answer_of_a_stopped_request_is_cancelled(
    stream: Callable[..., AsyncGenerator[LLMEngineOutput]], ended: tuple[int, ...]
) -> None:
    """With its index and its own tokens; those that have ended have no second end."""
    go_on = threading.Event()
    end = FinishReason.STOP
    none = cast("FinishReason", "")  # as some engines write it
    begun = [LLMEngineOutput([7] * (i + 1), index=i, finish_reason=none) for i in (0, 1)]
    begun += [LLMEngineOutput(finish_reason=end, index=index) for index in ended]

    def blocking() -> Iterator[LLMEngineOutput]:
        yield from begun
        go_on.wait(LONG_S)

    context = RequestContext()
    asked = replace(REQUEST, sampling_options=SamplingOptions(n=2))
    async with aclosing(stream(blocking, asked, context)) as chunks:
        assert [await anext(chunks) for _ in begun] == begun
        context.stop_generating()
        left = [chunk async for chunk in chunks]
    go_on.set()
    assert left == [
        LLMEngineOutput(
            finish_reason=FinishReason.CANCELLED, index=index, completion_usage=usage(3, index + 1)
        )
        for index in (0, 1)
        if index not in ended
    ]


@pytest.mark.rows("A4", "E4", "F1")
@pytest.mark.parametrize("stream", [iterate_in_thread, inbox_stream])
@real_time
async def test_text_without_ids_is_a_first_token_too(
    stream: Callable[..., AsyncGenerator[LLMEngineOutput]],
) -> None:
    """A decode request that is stopped after it ends, and its usage has a token for the chunk."""
    context = RequestContext()
    context.bind(asyncio.get_running_loop(), decode=True)
    made = [LLMEngineOutput(), LLMEngineOutput(text="a"), LLMEngineOutput(text="b")]
    async with aclosing(stream(lambda: iter(made), REQUEST, context)) as chunks:
        context.stop_generating()
        assert [await anext(chunks) for _ in made[1:]] == made[:2]
        left = [chunk async for chunk in chunks]
        assert left == [LLMEngineOutput.cancelled().with_usage(usage(3, 1))]


@pytest.mark.rows("E2", "E3")
@pytest.mark.parametrize("ahead", [1, 2, 100])
@real_time
async def test_iterator_in_order(ahead: int) -> None:
    """Every chunk arrives once, in order, then the end."""
    chunks = iterate_in_thread(lambda: tokens(50), REQUEST, RequestContext(), max_ahead=ahead)
    expected = [([token], "None") for token in range(50)] + [([], "stop")]
    assert await read(chunks) == expected


@real_time
async def test_the_iterator_is_at_most_max_ahead() -> None:
    """The thread makes what may wait, and one more that it can't hand over yet."""
    made: list[int] = []
    third = threading.Event()

    def watched() -> Iterator[LLMEngineOutput]:
        for chunk in tokens(100):
            made.append(1)
            if len(made) == 6:
                third.set()
            yield chunk

    chunks = iterate_in_thread(watched, REQUEST, RequestContext(), max_ahead=3)
    async with aclosing(chunks):
        await anext(chunks)
        await anext(chunks)
        # Two were taken, three wait, and one is in the thread's hand.
        await asyncio.to_thread(third.wait, LONG_S)
        await asyncio.sleep(0)
        assert len(made) == 6


@pytest.mark.rows("E4")
@real_time
async def test_stop_while_the_iterator_blocks() -> None:
    """The client has its terminal at once; the iterator is closed when it returns."""
    go_on, closed = threading.Event(), threading.Event()

    def blocking() -> Iterator[LLMEngineOutput]:
        try:
            yield LLMEngineOutput.token(7)
            go_on.wait(LONG_S)
            yield LLMEngineOutput.token(8)
        finally:
            closed.set()

    context = RequestContext()
    chunks = iterate_in_thread(blocking, REQUEST, context)
    assert (await anext(chunks)).token_ids == [7]
    waiting = asyncio.ensure_future(anext(chunks))
    await asyncio.sleep(0)
    context.stop_generating()
    last = await waiting
    assert last.finish_reason == FinishReason.CANCELLED
    assert last.completion_usage is not None
    assert last.completion_usage.completion_tokens == 1
    assert await read(chunks) == []
    assert not closed.is_set()
    go_on.set()
    assert await asyncio.to_thread(closed.wait, LONG_S)


@real_time
async def test_drop_closes_the_iterator() -> None:
    """A consumer that leaves ends the thread, which waits for room."""
    closed = threading.Event()

    def endless() -> Iterator[LLMEngineOutput]:
        try:
            while True:
                yield LLMEngineOutput.token(1)
        finally:
            closed.set()

    chunks = iterate_in_thread(endless, REQUEST, RequestContext(), max_ahead=2)
    await anext(chunks)
    await chunks.aclose()
    assert await asyncio.to_thread(closed.wait, LONG_S)


@pytest.mark.rows("S5")
@real_time
async def test_an_error_comes_after_the_chunks() -> None:
    """What was made before an error arrives before it; the error is the iterator's own."""

    def failing() -> Iterator[LLMEngineOutput]:
        yield LLMEngineOutput.token(1)
        raise LookupError("no such page")

    chunks = iterate_in_thread(failing, REQUEST, RequestContext())
    assert (await anext(chunks)).token_ids == [1]
    with pytest.raises(LookupError, match="no such page"):
        await anext(chunks)


@real_time
async def test_an_iterator_that_exits_ends_only_its_request() -> None:
    """In the event loop `SystemExit` would end the process."""

    def leaving() -> Iterator[LLMEngineOutput]:
        yield LLMEngineOutput.token(1)
        raise SystemExit(3)

    with pytest.raises(Unknown, match="SystemExit"):
        await read(iterate_in_thread(leaving, REQUEST, RequestContext()))


@real_time
async def test_context_variables_reach_the_thread() -> None:
    """A span that is current at the first pull is current in the iterator."""
    tenant = contextvars.ContextVar("tenant", default="nobody")
    seen: list[str] = []

    def looking() -> Iterator[LLMEngineOutput]:
        seen.append(tenant.get())
        yield LLMEngineOutput.stop()

    tenant.set("a")
    await read(iterate_in_thread(looking, REQUEST, RequestContext()))
    assert seen == ["a"]


# ------------------------------------------------------------------ callbacks


@real_time
async def test_inbox_of_several_threads() -> None:
    """What one thread puts stays in order; nothing is lost of any."""
    with ThreadInbox(REQUEST, RequestContext(), max_ahead=2) as inbox:

        def put(first: int) -> None:
            for token in range(first, first + 30):
                assert inbox.put(LLMEngineOutput.token(token))

        def all_threads() -> None:
            threads = [threading.Thread(target=put, args=(n * 100,)) for n in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            inbox.end()

        threading.Thread(target=all_threads).start()
        got = [chunk.token_ids[0] async for chunk in inbox]
    for first in (0, 100, 200):
        mine = [token for token in got if first <= token < first + 100]
        assert mine == list(range(first, first + 30))


@pytest.mark.parametrize("leaving", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
@real_time
async def test_a_thread_that_exits_ends_only_its_request(leaving: BaseException) -> None:
    """A thread may hand on whatever it ended with; in the event loop it would end the process."""
    with ThreadInbox(REQUEST, RequestContext()) as inbox:
        threading.Thread(target=inbox.end, args=(leaving,)).start()
        with pytest.raises(Unknown, match=type(leaving).__name__):
            await anext(aiter(inbox))

    class Leaving(Counting):
        def step(self, sequences: list[StepSequence]) -> None:
            sequences[0].fail(leaving)

    steps = StepThread(Leaving(), max_sequences=1)
    with pytest.raises(Unknown, match=type(leaving).__name__):
        await read(steps.stream(REQUEST, RequestContext()))
    await steps.close()


@pytest.mark.rows("E4")
@virtual
async def test_a_stop_wakes_the_producer_of_who_does_not_read() -> None:
    """A thread that sleeps behind a full queue frees the place of a stopped request."""
    context, changes = RequestContext(), list[str]()
    queue = ChunkQueue(REQUEST, context, max_ahead=1, on_change=lambda: changes.append("change"))
    with queue:
        context.stop_generating()
        await asyncio.sleep(0)
        assert changes == ["change"]


@virtual
async def test_a_queue_that_was_left_holds_nothing() -> None:
    """Neither chunks nor a place among those who hear of the request's stop."""
    context, changes = RequestContext(), list[str]()
    queue = ChunkQueue(REQUEST, context, max_ahead=4, on_change=lambda: changes.append("change"))
    with queue:
        queue.receive(LLMEngineOutput.token(1))
    queue.receive(LLMEngineOutput.token(2))
    assert [chunk async for chunk in queue] == []
    context.stop_generating()
    await asyncio.sleep(0)
    assert changes == ["change"]


@real_time
async def test_put_reports_an_abandoned_stream() -> None:
    """A callback that waits for room gets the error, and so does each later one."""
    answers: list[bool] = []
    with ThreadInbox(REQUEST, RequestContext(), max_ahead=1) as inbox:

        def put() -> None:
            answers.extend(inbox.put(LLMEngineOutput.token(1)) for _ in range(3))

        thread = threading.Thread(target=put)
        thread.start()
        await anext(aiter(inbox))
    await asyncio.to_thread(thread.join)
    assert answers in ([True, True, False], [True, False, False])
    assert inbox.is_abandoned


@real_time
async def test_put_in_the_event_loop_never_blocks_it() -> None:
    """Where it would have to wait for room it is an error; what fits is taken."""
    with ThreadInbox(REQUEST, RequestContext(), max_ahead=2) as inbox:
        assert inbox.put(LLMEngineOutput.token(1))
        assert inbox.put(LLMEngineOutput.stop())
        with pytest.raises(RuntimeError, match=r"ThreadInbox.put: there is no room, and the event"):
            inbox.put(LLMEngineOutput.token(2))
        inbox.end()
        assert [chunk.token_ids async for chunk in inbox] == [[1], []]
    assert not inbox.put(LLMEngineOutput.token(2))


@pytest.mark.rows("E2", "S6")
@pytest.mark.parametrize(
    "wrong", [3, None, "text", LLMEngineOutput(cast("Any", 5)), {"token_ids": "a"}]
)
@real_time
async def test_non_chunks_are_left_to_the_adapter(wrong: Any) -> None:
    """It is handed on as it is, like a mapping of a chunk's shape, and named there."""
    made = [LLMEngineOutput.token(1), {"token_ids": [2]}, wrong]

    engine = Iterating(lambda _: made)
    *items, last = [item async for item in await EngineAdapter(engine).generate(REQUEST)]
    assert [item.data.token_ids for item in items if item.data] == [[1], [2]]
    assert isinstance(last.error, InvalidArgument)


def test_end_after_the_loop_is_closed() -> None:
    """A thread that outlives the loop ends without an error."""
    kept: list[ThreadInbox] = []

    async def main() -> None:
        with ThreadInbox(REQUEST, RequestContext()) as inbox:
            kept.append(inbox)

    asyncio.run(main())
    assert not kept[0].put(LLMEngineOutput.token(1))
    kept[0].end()


@pytest.mark.parametrize("ahead", [0, -1, 1.5, True])
@real_time
async def test_an_invalid_max_ahead_is_rejected(ahead: Any) -> None:
    """The message names the argument."""
    with pytest.raises(InvalidArgument, match="max_ahead"):
        ThreadInbox(REQUEST, RequestContext(), max_ahead=ahead)
    with pytest.raises(InvalidArgument, match="max_ahead"):
        StepThread(Counting(), max_sequences=1, max_ahead=ahead)


# ------------------------------------------------------------------ a scheduler


class Counting:
    """Emits 0, 1, 2, ... for each sequence, as many as it asks for; notes what is done to it."""

    def __init__(self) -> None:
        self.admitted: list[StepSequence] = []
        self.released: list[StepSequence] = []
        self.most = 0
        self.gate = threading.Event()
        self.gate.set()

    def admit(self, sequence: StepSequence) -> None:
        if sequence.request.token_ids == [666]:
            raise MemoryError("no room")
        self.admitted.append(sequence)

    def step(self, sequences: list[StepSequence]) -> None:
        assert self.gate.wait(LONG_S)
        self.most = max(self.most, len(sequences))
        for sequence in sequences:
            wanted = sequence.request.stop_conditions.max_tokens or 1
            last = sequence.output_tokens + 1 == wanted
            sequence.emit_token(sequence.output_tokens, FinishReason.LENGTH if last else None)

    def release(self, sequence: StepSequence) -> None:
        self.released.append(sequence)

    def check_released(self) -> None:
        """Every admitted sequence was released, each once."""
        assert sorted(map(id, self.released)) == sorted(map(id, self.admitted))


def waits_for(name: str) -> object:
    async def method(*_: object) -> None: ...

    scheduler = Counting()
    setattr(scheduler, name, method)
    return scheduler


@pytest.mark.parametrize("name", ["admit", "step", "release"])
@pytest.mark.parametrize("kind", ["missing", "async", "class"])
@real_time
async def test_an_invalid_scheduler_is_rejected(name: str, kind: str) -> None:
    """It is refused at once: its requests would wait forever."""
    methods = dict.fromkeys({"admit", "step", "release"} - {name}, print)
    wrong = {"missing": type("Bare", (), methods)(), "async": waits_for(name), "class": Counting}
    named = "scheduler: expected an object" if kind == "class" else f"scheduler.{name}: expected a"
    with pytest.raises(InvalidArgument, match=named):
        StepThread(cast("Any", wrong[kind]), max_sequences=1)


def request_for(number: int, prompt: int = 1) -> PreprocessedRequest:
    return PreprocessedRequest(
        token_ids=[prompt], stop_conditions=StopConditions(max_tokens=number)
    )


def answer(number: int) -> list[tuple[list[int], str]]:
    return [([token], "length" if token == number - 1 else "None") for token in range(number)]


@pytest.mark.rows("E1", "E3")
@real_time
async def test_more_streams_than_slots() -> None:
    """Each gets its own tokens; never more than the batch's size are stepped."""
    scheduler = Counting()
    steps = StepThread(scheduler, max_sequences=3)
    streams = [steps.stream(request_for(n + 1), RequestContext()) for n in range(20)]
    assert await asyncio.gather(*map(read, streams)) == [answer(n + 1) for n in range(20)]
    await steps.close()
    assert scheduler.most <= 3
    scheduler.check_released()
    assert (steps.active, steps.waiting) == (0, 0)


@real_time
async def test_a_slow_consumer_pauses_only_its_sequence() -> None:
    """A consumer that does not read holds back its own sequence, and gets all of it later."""
    scheduler = Counting()
    steps = StepThread(scheduler, max_sequences=2, max_ahead=4)
    slow = steps.stream(request_for(50), RequestContext())
    got = [(await anext(slow)).token_ids]
    assert await read(steps.stream(request_for(200), RequestContext())) == answer(200)
    (sequence,) = [each for each in scheduler.admitted if each not in scheduler.released]
    assert sequence.output_tokens <= 1 + 4
    got += [ids for ids, _ in await read(slow)]
    assert got == [[token] for token in range(50)]
    await steps.close()


@real_time
async def test_the_batch_waits_when_every_consumer_is_slow() -> None:
    """With no sequence to step the thread waits; a read wakes it."""
    steps = StepThread(Counting(), max_sequences=2, max_ahead=1)
    streams = [steps.stream(request_for(30), RequestContext()) for _ in range(2)]
    got: list[list[int]] = [[], []]
    for _ in range(30):
        for place, stream in enumerate(streams):
            got[place] += (await anext(stream)).token_ids
    assert got == [list(range(30))] * 2
    await asyncio.gather(*map(read, streams))
    await steps.close()


@pytest.mark.rows("E4")
@real_time
async def test_stop_and_drop_free_the_slot() -> None:
    """A request queued behind a stopped or dropped one gets its slot at the next step."""
    scheduler = Counting()
    steps = StepThread(scheduler, max_sequences=2)
    contexts = [RequestContext(), RequestContext()]
    streams = [steps.stream(request_for(10**9), context) for context in contexts]
    for stream in streams:
        await anext(stream)
    behind = asyncio.create_task(read(steps.stream(request_for(3), RequestContext())))
    contexts[0].stop_generating()
    await streams[1].aclose()
    rest = await read(streams[0])
    assert rest[-1] == ([], "cancelled")
    assert await behind == answer(3)
    await steps.close()
    scheduler.check_released()


class StopsItself(RequestContext):
    """A request that is stopped the moment before the step thread looks for the *nth* time."""

    __slots__ = ("_looks_left",)

    def __init__(self, nth: int) -> None:
        super().__init__()
        self._looks_left = nth

    @property
    def is_stopped(self) -> bool:
        if threading.current_thread().name == "steps":
            self._looks_left -= 1
            if not self._looks_left:
                self.stop_generating()
        return super().is_stopped


@pytest.mark.rows("E4")
@real_time
async def test_a_stop_at_any_time_frees_the_slot_once() -> None:
    """Also in the middle of what the thread does between two steps."""
    scheduler = Counting()
    steps = StepThread(scheduler, max_sequences=2)
    for nth in range(1, 20):
        stopped = read(steps.stream(request_for(10**9), StopsItself(nth)))
        others = [read(steps.stream(request_for(30), RequestContext())) for _ in range(3)]
        ended, *answers = await asyncio.gather(stopped, *others)
        assert ended[-1] == ([], "cancelled")
        assert answers == [answer(30)] * 3
    await steps.close()
    scheduler.check_released()


@real_time
async def test_drain_waits_for_the_last_sequence() -> None:
    """For those in the batch and those that wait; an idle or closed thread is drained."""
    scheduler = Counting()
    steps = StepThread(scheduler, max_sequences=1)
    await steps.drain()
    scheduler.gate.clear()
    streams = [steps.stream(request_for(5), RequestContext()) for _ in range(2)]
    reading = [asyncio.create_task(read(stream)) for stream in streams]
    await asyncio.sleep(0)
    draining = [asyncio.create_task(steps.drain()) for _ in range(2)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in draining)
    scheduler.gate.set()
    await asyncio.gather(*draining)
    assert (steps.active, steps.waiting) == (0, 0)
    scheduler.check_released()
    await asyncio.gather(*reading)
    await steps.close()
    await steps.drain()


@real_time
async def test_a_sequence_has_the_state_that_its_stream_was_given() -> None:
    """So that what was checked before need not be checked in the thread."""
    scheduler = Counting()
    steps = StepThread(scheduler, max_sequences=1)
    await read(steps.stream(request_for(1), RequestContext(), state="checked"))
    await steps.close()
    assert [sequence.state for sequence in scheduler.admitted] == ["checked"]


@pytest.mark.rows("A4")
@real_time
async def test_decode_mode_stops_after_the_first_token() -> None:
    """A stop before it is heard once it is there."""
    scheduler = Counting()
    scheduler.gate.clear()
    steps = StepThread(scheduler, max_sequences=1)
    context = RequestContext()
    context.bind(asyncio.get_running_loop(), decode=True)
    context.stop_generating()
    stream = steps.stream(request_for(100), context)
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    scheduler.gate.set()
    assert (await first).token_ids == [0]
    assert (await read(stream))[-1] == ([], "cancelled")
    await steps.close()
    scheduler.check_released()


@pytest.mark.rows("F1")
@real_time
async def test_text_without_ids_counts_as_a_token_of_a_step() -> None:
    """So a scheduler can count to a limit, and the usage is not zero."""

    class Writing(Counting):
        def step(self, sequences: list[StepSequence]) -> None:
            for sequence in sequences:
                wanted = sequence.request.stop_conditions.max_tokens
                ends = FinishReason.LENGTH if sequence.output_tokens + 1 == wanted else None
                sequence.emit(LLMEngineOutput(text="a", finish_reason=ends))

    scheduler = Writing()
    steps = StepThread(scheduler, max_sequences=1)
    chunks = [chunk async for chunk in steps.stream(request_for(3), RequestContext())]
    assert [chunk.completion_usage for chunk in chunks] == [None, None, usage(1, 3)]
    await steps.close()
    scheduler.check_released()


@pytest.mark.rows("S5")
@real_time
async def test_errors_end_only_the_sequences_concerned() -> None:
    """An error of `admit` ends its own request; one of `step` ends those in the step."""

    class Failing(Counting):
        def step(self, sequences: list[StepSequence]) -> None:
            if any(each.request.token_ids == [13] for each in sequences):
                raise Unknown("device lost")
            super().step(sequences)

    scheduler = Failing()
    steps = StepThread(scheduler, max_sequences=4)
    with pytest.raises(Unknown, match="no room"):
        await read(steps.stream(request_for(3, prompt=666), RequestContext()))
    assert await read(steps.stream(request_for(3), RequestContext())) == answer(3)
    both = [steps.stream(request_for(3, prompt=13), RequestContext()) for _ in range(2)]
    errors = await asyncio.gather(*map(read, both), return_exceptions=True)
    assert [str(error) for error in errors] == ["BackendUnknown: device lost"] * 2
    assert errors[0] is not errors[1]
    assert await read(steps.stream(request_for(3), RequestContext())) == answer(3)
    await steps.close()
    scheduler.check_released()


@pytest.mark.rows("E5")
@real_time
async def test_close_ends_streams() -> None:
    """Those in the batch, those in the queue and later ones; a second close does nothing."""
    scheduler = Counting()
    steps = StepThread(scheduler, max_sequences=1)
    running = steps.stream(request_for(10**9), RequestContext())
    await anext(running)
    queued = asyncio.ensure_future(anext(steps.stream(request_for(1), RequestContext())))
    await asyncio.sleep(0)
    await steps.close()
    await steps.close()
    for left in (read(running), queued, read(steps.stream(request_for(1), RequestContext()))):
        with pytest.raises(EngineShutdown):
            await left
    scheduler.check_released()


@real_time
async def test_another_event_loop_is_rejected() -> None:
    """It would wait forever for chunks that go to the first one."""
    steps = StepThread(Counting(), max_sequences=1)

    async def elsewhere() -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            await read(steps.stream(request_for(1), RequestContext()))

    await asyncio.to_thread(asyncio.run, elsewhere())
    await steps.close()


@pytest.mark.rows("E7")
@pytest.mark.parametrize("hook", ["admit", "step", "release"])
@real_time
async def test_a_thread_that_dies_is_lost(hook: str) -> None:
    """What is no `Exception` ends the thread: its streams are disconnected, and the engine lost."""

    class Dying(Counting):
        def admit(self, sequence: StepSequence) -> None:
            super().admit(sequence)
            self._die_in("admit")

        def step(self, sequences: list[StepSequence]) -> None:
            super().step(sequences)
            self._die_in("step")

        def release(self, sequence: StepSequence) -> None:
            self._die_in("release")

        def _die_in(self, name: str) -> None:
            if name == hook:
                raise SystemExit(3)

    steps = StepThread(Dying(), max_sequences=2)
    streams = [steps.stream(request_for(1), RequestContext()) for _ in range(3)]
    errors = await asyncio.gather(*map(read, streams), return_exceptions=True)
    errors += await asyncio.gather(
        read(steps.stream(request_for(3), RequestContext())), return_exceptions=True
    )
    assert [type(error) for error in errors] == [Disconnected] * 4
    assert "SystemExit(3)" in await steps.lost()
    await steps.close()


@pytest.mark.rows("E7")
@pytest.mark.parametrize("hook", ["admit", "step"])
@real_time
async def test_a_scheduler_that_is_disconnected_is_lost(hook: str) -> None:
    """With its own error, for the streams in the batch, the one that it was told for, and later ones."""

    class Leaving(Counting):
        def admit(self, sequence: StepSequence) -> None:
            super().admit(sequence)
            if hook == "admit" and sequence.request.token_ids == [13]:
                self.admitted.pop()
                raise Disconnected("the core is gone")

        def step(self, sequences: list[StepSequence]) -> None:
            if hook == "step" and len(sequences) == 2:
                raise Disconnected("the core is gone")
            super().step(sequences)

    scheduler = Leaving()
    steps = StepThread(scheduler, max_sequences=2)
    running = steps.stream(request_for(10**9), RequestContext())
    await anext(running)
    later = read(steps.stream(request_for(9, prompt=13), RequestContext()))
    errors = await asyncio.gather(read(running), later, return_exceptions=True)
    errors += await asyncio.gather(
        read(steps.stream(request_for(3), RequestContext())), return_exceptions=True
    )
    assert [str(error) for error in errors] == ["BackendDisconnected: the core is gone"] * 3
    assert await steps.lost() == "the core is gone"
    scheduler.check_released()
    await steps.close()


@pytest.mark.rows("E7")
@real_time
async def test_steps_that_all_fail_are_a_loss() -> None:
    """The eighth in a row; a step in between that does not fail begins anew."""

    class Failing(Counting):
        def step(self, sequences: list[StepSequence]) -> None:
            if any(each.request.token_ids == [13] for each in sequences):
                raise OSError("no device")
            super().step(sequences)

    scheduler = Failing()
    steps = StepThread(scheduler, max_sequences=4)

    async def fails() -> BaseException:
        with pytest.raises((Unknown, Disconnected)) as caught:
            await read(steps.stream(request_for(3, prompt=13), RequestContext()))
        return caught.value

    for _ in range(2):
        kinds = [type(await fails()) for _ in range(7)]
        assert kinds == [Unknown] * 7
        assert await read(steps.stream(request_for(3), RequestContext())) == answer(3)
    kinds = [type(await fails()) for _ in range(9)]
    assert kinds == [Unknown] * 7 + [Disconnected] * 2
    assert await steps.lost() == "8 steps in a row failed: OSError('no device')"
    scheduler.check_released()
    await steps.close()


PLANS = st.lists(
    st.tuples(
        st.integers(1, 12),  # tokens
        st.sampled_from(["read", "lag", "stop", "drop", "never"]),
        st.integers(0, 12),  # after how many
    ),
    min_size=1,
    max_size=12,
)


async def _client(steps: StepThread, plan: tuple[int, str, int], draw: random.Random) -> None:
    """Do as planned, and check what was read."""
    wanted, kind, after = plan
    context = RequestContext()
    got: list[tuple[list[int], str]] = []
    async with aclosing(steps.stream(request_for(wanted), context)) as stream:
        if kind == "never":
            return
        async for chunk in stream:
            got.append((chunk.token_ids, str(chunk.finish_reason)))
            for _ in range(draw.randrange(4) if kind == "lag" else 0):
                await asyncio.sleep(0)
            if len(got) == after and kind == "stop":
                context.stop_generating()
            if len(got) == after and kind == "drop":
                break
    if got[-1][1] == "cancelled":
        assert kind == "stop"
        assert len(got) - 1 >= after
        got.pop()
    elif kind != "drop":
        assert len(got) == wanted
    assert got == answer(wanted)[: len(got)]


@given(plans=PLANS, places=st.integers(1, 4), ahead=st.integers(1, 5), seed=st.integers(0, 99))
@real_time
async def test_any_mix_of_clients(
    plans: list[tuple[int, str, int]], places: int, ahead: int, seed: int
) -> None:
    """Whatever its neighbours do, a client that stays gets its tokens; everything is released."""
    draw = random.Random(seed)
    scheduler = Counting()
    steps = StepThread(scheduler, max_sequences=places, max_ahead=ahead)
    await asyncio.gather(*(_client(steps, plan, draw) for plan in plans))
    await steps.close()
    assert scheduler.most <= places
    scheduler.check_released()


# ------------------------------------------------------------------ as engines


class Iterating(LLMEngine):
    """An engine whose library gives a blocking iterator."""

    def __init__(self, make: Callable[[int], Iterable[Any]] = tokens) -> None:
        self._make = make

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model="iterating")

    def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        number = request.stop_conditions.max_tokens or 4
        return iterate_in_thread(lambda: self._make(number), request, context)


class Calling(LLMEngine):
    """An engine whose library calls back on threads of its own."""

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model="calling")

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        with ThreadInbox(request, context) as inbox:

            def library() -> None:
                for chunk in tokens(request.stop_conditions.max_tokens or 4):
                    inbox.put(chunk)
                inbox.end()

            threading.Thread(target=library).start()
            async for chunk in inbox:
                yield chunk


class Stepping(LLMEngine):
    """An engine that is a scheduler."""

    steps: StepThread | None = None

    async def start(self, worker_id: int) -> EngineConfig:
        self.steps = StepThread(Counting(), max_sequences=2)
        return EngineConfig(model="stepping")

    def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        assert self.steps is not None
        return self.steps.stream(request, context)

    async def cleanup(self) -> None:
        if self.steps is not None:
            await self.steps.close()


@pytest.mark.rows("E1", "E2", "E3", "E4", "E5")
@pytest.mark.parametrize("factory", [Iterating, Calling, Stepping])
def test_conformance(factory: Callable[[], LLMEngine]) -> None:
    """The ten lines keep to the contract."""
    run_conformance(factory, virtual=False).raise_if_failed()
