"""
Random interleavings of everybody who has a hand in a request, against a small model of the rows.

A history is a list of turns, one second apart in virtual time. What is in one turn happens without
the event loop having a chance in between, so that the histories include races within an iteration.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode
from reactivex import operators as ops

from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.disagg import DisaggregationMode
from rx_backend.engine import EngineConfig, LLMEngine
from rx_backend.errors import Disconnected
from rx_backend.pipeline import standard_pipeline
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest
from rx_backend.testing import run_virtual
from tests.engines import Item, Stream, before, now, request
from tests.examples import examples
from tests.spans import Spans

# What the engine sends: a chunk or a terminal of so many tokens, an error, or nothing any more.
SENT = ["chunk 0", "chunk 1", "chunk 2", "terminal 0", "terminal 1", "error", "end"]
# What the caller signals, and what the engine says from beside its stream.
SIGNALLED = ["stop", "kill", "notify"]
# What the consumer does. A pull lasts until it has an item, through any number of turns.
DONE = ["pull", "close", "cancel", "forget"]

Turn: TypeAlias = Sequence[str]


@dataclass
class Rows:
    """The rows as a program: what must come of a history."""

    is_decode: bool
    second: int = 0
    is_live: bool = True
    is_waiting: bool = False
    is_pulling: bool = False
    is_dropping: bool = False
    is_lost: bool = False
    has_last_chance: bool = False
    was_pulled: bool = False
    is_stopped: bool = False
    has_first_token: bool = False
    sent: deque[str] = field(default_factory=deque[str])
    items: list[str] = field(default_factory=list[str])
    aborts: list[int] = field(default_factory=list[int])
    span: dict[str, Any] = field(default_factory=dict[str, Any])
    output_tokens: int = 0

    def happens(self, event: str) -> None:
        """Take what happens within an iteration, in order."""
        match event:
            case "stop" | "kill":
                self.is_stopped = True  # C1: and stays so
                if self.is_live:  # A6: after the end a signal does nothing
                    self.abort_if_due()
            case "notify":
                self.learn_of_first_token()
            case "pull":
                self.is_pulling = not self.is_waiting
            case "cancel" if self.is_waiting:
                self.is_dropping = True  # takes effect where the pull waits, in the next turn
            case "close":
                self.drop()
                self.is_waiting = False
            case "forget" if not self.is_waiting and not self.is_pulling:
                self.is_lost = True  # S7: takes effect at the end of the turn
            case "cancel" | "forget":
                pass  # there is no waiter, or the stream is held
            case _:
                self.sent.append(event)

    def turn_ends(self) -> None:
        """Take what follows from the turn before the next begins."""
        if self.is_dropping or self.is_lost:
            self.drop()
            self.is_dropping = self.is_waiting = False
        if self.is_pulling:
            self.is_waiting, self.is_pulling = self.is_live, False
            self.was_pulled |= self.is_live
        if self.is_waiting and self.sent:  # S4: nothing is taken that was not asked for
            self.is_waiting = False
            self.hand_out(self.sent.popleft())
        self.has_last_chance = False
        self.second += 1

    def hand_out(self, sent: str) -> None:
        """One step of the engine reaches the consumer."""
        kind, _, tokens = sent.partition(" ")
        if tokens and int(tokens):
            self.output_tokens += int(tokens)  # P3: tokens, not chunks
            self.learn_of_first_token()  # A5: before the end that the same chunk may be
        self.items.append("error" if kind == "end" else sent)  # S1, S6, S9
        if kind == "terminal":
            self.end(finish_reason="Stop", cancelled=self.is_stopped)  # S2, P3
        elif kind == "error":
            self.end(error_kind="Backend(Disconnected)", cancelled=self.is_stopped)  # S6, P4
        elif kind == "end":
            self.end(error_kind="Backend(StreamIncomplete)", cancelled=self.is_stopped)  # S9

    def drop(self) -> None:
        if self.is_live:
            self.has_last_chance = self.is_stopped  # A5: for the rest of this turn
            self.end(finish_reason="Dropped", cancelled=True)  # P5

    def end(self, **span: Any) -> None:
        self.is_live = False
        self.span = {**span, "output_tokens": self.output_tokens, "ended": self.second}

    def learn_of_first_token(self) -> None:
        if self.is_decode:  # C4
            self.has_first_token = True
            if (self.is_live and self.is_stopped) or self.has_last_chance:
                self.abort_if_due()  # A4, A5

    def abort_if_due(self) -> None:
        if not self.aborts and (self.has_first_token or not self.is_decode):  # A2, A3, A4
            self.aborts.append(self.second)


class FedEngine(LLMEngine):
    """Takes one step for each entry of its queue, and ignores stops."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[str] = asyncio.Queue()
        self.aborts: list[float] = []
        self.opened = 0
        self.closed = 0

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model="fed")

    async def abort(self, context: RequestContext) -> None:
        self.aborts.append(now())

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        self.opened += 1
        try:
            while (told := await self.queue.get()) != "end":
                kind, _, tokens = told.partition(" ")
                if kind == "error":
                    raise Disconnected("gone")
                chunk = LLMEngineOutput.stop() if kind == "terminal" else LLMEngineOutput()
                yield chunk.with_tokens([7] * int(tokens))
        finally:
            self.closed += 1


class Actors:
    """Lets a history happen to a real stream."""

    def __init__(self, stream: Stream, context: RequestContext, engine: FedEngine) -> None:
        self._streams = [stream]
        self._context = context
        self._engine = engine
        self._task: asyncio.Task[None] | None = None
        self._is_new = False
        self.items: list[Item] = []

    @property
    def _is_pulling(self) -> bool:
        return self._task is not None and not self._task.done()

    def do(self, event: str) -> None:
        act = getattr(self, f"_{event}", None)
        if act is not None:
            act()
        else:
            self._engine.queue.put_nowait(event)

    def _stop(self) -> None:
        self._context.stop_generating()

    def _kill(self) -> None:
        self._context.kill()

    def _notify(self) -> None:
        self._context.notify_first_token()

    def _pull(self) -> None:
        if self._streams and not self._is_pulling:
            self._task = asyncio.create_task(self._pull_one(self._streams[0]))
            self._is_new = True

    def _close(self) -> None:
        for stream in self._streams:
            stream.close()

    def _cancel(self) -> None:
        if self._task is not None and not self._is_new:
            self._task.cancel()

    def _forget(self) -> None:
        if not self._is_pulling:
            self._task = None
            self._streams.clear()

    async def turn_ends(self) -> None:
        await asyncio.sleep(1)
        self._is_new = False
        if self._task is not None and self._task.done():
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _pull_one(self, stream: Stream) -> None:
        with suppress(StopAsyncIteration):
            self.items.append(await anext(stream))


def described(item: Item) -> str:
    """Describe the item in the words of the engine's steps."""
    if item.data is None:
        return "error"
    kind = "terminal" if item.data.finish_reason else "chunk"
    return f"{kind} {len(item.data.token_ids)}"


def recorded(span: ReadableSpan) -> dict[str, Any]:
    """Return the part of a span that the model has too."""
    told = ("finish_reason", "error_kind", "cancelled", "output_tokens")
    attributes = span.attributes or {}
    assert span.end_time is not None
    return {name: attributes[name] for name in told if name in attributes} | {
        "ended": span.end_time // 10**9
    }


async def run_history(mode: DisaggregationMode, history: Sequence[Turn], place: str | None) -> None:
    rows, spans, context, engine = Rows(mode.is_decode), Spans(), RequestContext(), FedEngine()
    clock = asyncio.get_running_loop().time
    # A stock operator makes no difference anywhere.
    pipeline = standard_pipeline if place is None else before(place, ops.do_action())
    adapter = EngineAdapter(engine, mode, pipeline, tracer=spans.tracer, clock=clock)
    actors = Actors(await adapter.generate(request(), context), context, engine)
    for turn in [*history, ["close"], []]:
        for event in turn:
            rows.happens(event)
            actors.do(event)
        rows.turn_ends()
        await actors.turn_ends()
    assert [described(item) for item in actors.items] == rows.items
    assert engine.aborts == rows.aborts
    assert engine.opened == engine.closed == rows.was_pulled
    assert recorded(spans.one()) == rows.span
    is_failure = rows.span.get("finish_reason") != "Stop"
    assert (spans.one().status.status_code is StatusCode.ERROR) is is_failure
    assert asyncio.all_tasks() == {asyncio.current_task()}


turns = st.lists(
    st.sampled_from([*SENT, *SIGNALLED, *DONE, "pull", "pull"]), min_size=1, max_size=4
)


@pytest.mark.rows("S1", "S2", "S4", "S6", "S7", "A1", "A2", "A3", "A4", "A5", "A6", "C4")
@pytest.mark.rows("P3", "P4", "P5", "P6a", "P7", "S9")
@pytest.mark.reference(
    "aggregated_fires_abort_immediately", "decode_stream_drop_without_first_token_does_not_abort"
)
@examples(200)
@given(
    mode=st.sampled_from(DisaggregationMode),
    history=st.lists(turns, max_size=8),
    place=st.sampled_from([None, *standard_pipeline.names, "items"]),
)
@example(DisaggregationMode.DECODE, [["pull"], ["stop"], ["notify", "close"]], None)
@example(DisaggregationMode.DECODE, [["pull"], ["stop"], ["close", "notify"]], None)
@example(DisaggregationMode.DECODE, [["stop"], ["forget", "notify"]], None)
@example(DisaggregationMode.DECODE, [["close", "stop", "notify"]], None)
@example(DisaggregationMode.DECODE, [["stop"], ["terminal 1", "pull"]], None)
@example(DisaggregationMode.AGGREGATED, [["pull"], ["chunk 1", "cancel", "kill"]], None)
@example(DisaggregationMode.AGGREGATED, [["pull", "chunk 1"], ["stop", "close"]], None)
@example(DisaggregationMode.DECODE, [["pull", "chunk 1"], ["close", "stop"]], None)
@example(DisaggregationMode.DECODE, [["pull"], ["stop"], ["close"], ["notify"]], None)
@example(DisaggregationMode.DECODE, [["stop"], ["notify"], ["close"], ["notify"]], None)
@example(DisaggregationMode.PREFILL, [["pull"], ["stop"], ["close"]], None)
def test_any_interleaving_keeps_the_rules(
    mode: DisaggregationMode, history: Sequence[Turn], place: str | None
) -> None:
    """Items, aborts and their times, the engine's end and the span are what the rows say."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("opentelemetry.sdk.trace", "rx_backend.adapter"):
            patch.setattr(f"{module}.time_ns", lambda: round(now() * 1e9))
        run_virtual(run_history(mode, history, place))
