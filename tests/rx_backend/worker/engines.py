"""Engines that the workers of these tests serve, in processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanContext

from examples.pipelines import draining
from operators import Pipeline
from rx_backend import (
    DisaggregationMode,
    EngineConfig,
    FailoverEngine,
    InvalidArgument,
    LLMEngine,
    LLMEngineOutput,
    PreprocessedRequest,
    RequestContext,
    RequestScope,
    standard_pipeline,
)
from rx_backend.protocols import to_builtins, usage
from rx_backend.worker.model_files import NUMBERS
from rx_backend.worker.nodelay import listening_sockets

WAIT, FAIL_FIRST, FAIL_LATER, SOCKETS = "w", "f", "l", "s"
MODEL = "counting"


def say(line: str) -> None:
    """Tell the test, in one piece."""
    os.write(1, f"{line}\n".encode())


class CountingEngine(LLMEngine):
    """
    Counts 0, 1, 2; of several answers each is longer by one than the one before. The first letter of
    the request's text picks something else.

    `w`: after the first token it waits for the file that RELEASE names, and for a stop.
    `f`: it fails with a typed error before the first token; `l`: with any error after it.
    `s`: it tells the ports that its process listens at, and which of them send at once.
    """

    async def start(self, worker_id: int) -> EngineConfig:
        say(f"start {worker_id > 0}")
        return EngineConfig(
            model=MODEL,
            context_length=2048,
            kv_cache_block_size=32,
            total_kv_blocks=640,
            runtime_data={"any": [1, {"json": None}], "text": "x", "yes": True},
        )

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncIterator[LLMEngineOutput]:
        letter = _first_letter(request.token_ids)
        if request.is_probe:
            say(f"probed {letter}")
        _before_the_first_token(letter)
        wanted, answers = request.stop_conditions.max_tokens or 8, request.sampling_options.n or 1
        if answers > 1:
            for chunk in _answers(wanted, answers):
                yield chunk
            return
        for made in range(wanted):
            if context.is_stopped:
                yield LLMEngineOutput.cancelled()
                return
            if made == wanted - 1:
                last = LLMEngineOutput.length().with_tokens([made])
                yield last.with_usage(usage(len(request.token_ids), wanted))
            else:
                yield LLMEngineOutput.token(made)
            if letter == FAIL_LATER:
                raise RuntimeError("the device is gone")
            if letter == WAIT and made == 0:
                say("waiting")
                await _released_or_stopped(context, Path(os.environ["RELEASE"]))

    async def abort(self, context: RequestContext) -> None:
        say("abort")

    async def drain(self) -> None:
        say("drain")

    async def cleanup(self) -> None:
        say("cleanup")

    async def health_check_payload(self) -> dict[str, Any] | None:
        letter = os.environ.get("PROBE", "c")
        return {"token_ids": [_BYTE_0 + ord(letter)], "stop_conditions": {"max_tokens": 2}}


class ModelEngine(CountingEngine):
    """Takes a model and two arguments, or arguments of its own, and says which; repeats prompts."""

    def __init__(self, model_path: str | None = None, *, size: Any = None, model: str = "") -> None:
        self.model_path = model_path
        self.size = size
        self.model = model

    @classmethod
    async def from_args(cls, argv: list[str]) -> ModelEngine:
        return cls(size=argv)

    async def start(self, worker_id: int) -> EngineConfig:
        say(f"model {self.model_path} size {self.size!r}")
        config = await super().start(worker_id)
        config.model = self.model or MODEL
        return config

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncIterator[LLMEngineOutput]:
        say(f"prompt {request.token_ids} {request.eos_token_ids}")
        for token_id in request.token_ids:
            yield LLMEngineOutput.token(token_id)
        yield LLMEngineOutput.stop()


class RemoteEngine(CountingEngine):
    """Has a model, which is elsewhere."""

    needs_tokenizer = True


def remote_or_not() -> LLMEngine:
    """Make an engine of two, the second of which has a model."""
    return FailoverEngine(CountingEngine(), RemoteEngine())


class TextEngine(CountingEngine):
    """Says the text that it was made with, a word at a time."""

    def __init__(self, text: str) -> None:
        self.text = text

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncIterator[LLMEngineOutput]:
        for word in re.findall(r"\S+|\s+", self.text):
            yield LLMEngineOutput([_BYTE_0 + byte for byte in word.encode()])
        yield LLMEngineOutput.stop()


class StopIgnoringEngine(CountingEngine):
    """Gives a token each 10 ms, whoever stops it, and says when a stream opens and closes."""

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncIterator[LLMEngineOutput]:
        say("opened")
        try:
            async for chunk in self._chunks(request.stop_conditions.max_tokens or 2000):
                yield chunk
        finally:
            say("closed")

    async def _chunks(self, wanted: int) -> AsyncIterator[LLMEngineOutput]:
        for made in range(wanted):
            await asyncio.sleep(0.01)
            yield LLMEngineOutput.token(made % 10)
        yield LLMEngineOutput.length()


class GroupEngine(StopIgnoringEngine):
    """Has its task in its frame, by a task group."""

    async def _chunks(self, wanted: int) -> AsyncIterator[LLMEngineOutput]:
        async with asyncio.TaskGroup() as group:
            beside = group.create_task(asyncio.sleep(60))
            async for chunk in super()._chunks(wanted):
                yield chunk
            beside.cancel()


class ProbelessEngine(CountingEngine):
    """Has no request for a health check."""

    async def health_check_payload(self) -> dict[str, Any] | None:
        return None


class BlockingEngine(CountingEngine):
    """Blocks the event loop while it starts; what interrupts it is swallowed where SWALLOWS is set."""

    async def start(self, worker_id: int) -> EngineConfig:
        say("blocks")
        while True:
            try:
                time.sleep(60)  # noqa: ASYNC251 - its purpose
            except BaseException:
                if "SWALLOWS" not in os.environ:
                    raise


def _before_the_first_token(letter: str) -> None:
    if letter == FAIL_FIRST:
        raise InvalidArgument("no such prompt")
    if letter == SOCKETS:
        for listening in listening_sockets():
            with listening:
                at_once = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                say(f"port {listening.getsockname()[1]} at once {at_once != 0}")


def _answers(wanted: int, answers: int) -> Iterator[LLMEngineOutput]:
    for made in range(wanted + answers):
        for index in range(answers):
            if made < wanted + index:
                yield LLMEngineOutput([made], index=index)
            elif made == wanted + index:
                last = LLMEngineOutput.length()
                last.index = index
                yield last


async def _released_or_stopped(context: RequestContext, release: Path) -> None:
    while not (os.access(release, os.F_OK) or context.is_stopped):  # noqa: ASYNC110 - a file
        await asyncio.sleep(0.01)


# The placeholder tokenizer has the bytes after the numbers.
_BYTE_0 = NUMBERS


def text_of(token_ids: list[int]) -> str:
    """What a prompt of text says."""
    return bytes(token - _BYTE_0 for token in token_ids).decode()


def _first_letter(token_ids: list[int]) -> str:
    """The first letter of the user's message, or of a prompt of one token."""
    return text_of(token_ids).removeprefix("user: ")[0]


PEER_MODEL = "peers"
FIRST = 500
WAIT_INSIDE, WAIT_BEFORE, BEAT_BEFORE, BOOTSTRAP = "i", "b", "h", "s"
MADE_BEFORE_THE_WAIT = 3


class PeerEngine(LLMEngine):
    """
    Counts from 500, or on from the number that ends its prompt.

    In decode mode the number comes from what the prefill worker has handed over. The first letter
    of the user's message picks what else happens, where the tokens are made:

    `i`: it waits after the third token, until there is a file of that letter in RELEASE, and for a
    stop.
    `b`: it waits so before the first token, and for no stop, as for a transfer under way.
    `h`: the same, with an empty chunk now and then.
    `s`: prefill gives a place to meet instead of a result.
    """

    def __init__(self, mode: str) -> None:
        self.mode = DisaggregationMode.parse(mode)
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(_Tell()))
        trace.set_tracer_provider(provider)

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model=PEER_MODEL)

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncIterator[LLMEngineOutput]:
        span = trace.get_current_span().get_span_context()
        tell("request", **to_builtins(request), span=_identity(span))
        letter = _peer_letter(request)
        last = request.token_ids[-1]
        number = last + 1 if last < NUMBERS else FIRST
        if self.mode.is_prefill:
            yield _handed_over(number, letter)
            return
        if request.prefill_result is not None:
            number = request.prefill_result.disaggregated_params["next"]
        if letter in {WAIT_BEFORE, BEAT_BEFORE}:
            async for _ in _transfer(letter, context):
                if letter == BEAT_BEFORE:
                    yield LLMEngineOutput()
        wanted = request.stop_conditions.max_tokens or 8
        for made in range(wanted):
            if letter == WAIT_INSIDE and number == FIRST + MADE_BEFORE_THE_WAIT:
                say("waiting")
                await _released_or_stopped(context, _release(letter))
            if made and context.is_stopped:
                yield LLMEngineOutput.cancelled()
                return
            if not made:
                say("first token")
            chunk = LLMEngineOutput.length() if made == wanted - 1 else LLMEngineOutput()
            yield chunk.with_tokens([number])
            number += 1

    async def abort(self, context: RequestContext) -> None:
        say("abort")


def draining_beats(scope: RequestScope) -> Pipeline:
    """Drain the requests that are sent empty chunks before their first token."""
    return draining if _peer_letter(scope.request) == BEAT_BEFORE else standard_pipeline


class ChildEngine(PeerEngine):
    """Works by a child process, without which it is lost."""

    async def start(self, worker_id: int) -> EngineConfig:
        # It ends with its parent, and holds none of the pipes that the test reads.
        pipe, nowhere = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        self.child = await asyncio.create_subprocess_exec("cat", stdin=pipe, stdout=nowhere)
        return await super().start(worker_id)

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncIterator[LLMEngineOutput]:
        tell("child", pid=self.child.pid)
        async for chunk in super().generate(request, context):
            yield chunk

    async def lost(self) -> str:
        return f"its child process ended with {await self.child.wait()}"

    async def cleanup(self) -> None:
        say("cleanup")
        if self.child.returncode is None:
            self.child.kill()
        await self.child.wait()


def tell(what: str, **fields: Any) -> None:
    say(f"{what} {json.dumps(fields)}")


def _handed_over(number: int, letter: str) -> LLMEngineOutput:
    chunk = LLMEngineOutput.length().with_tokens([number])
    place = {"bootstrap_host": "127.0.0.1", "bootstrap_port": 9, "bootstrap_room": 2**62}
    chunk.disaggregated_params = place if letter == BOOTSTRAP else {"next": number}
    tell("handed", **chunk.disaggregated_params)
    return chunk


async def _transfer(letter: str, context: RequestContext) -> AsyncIterator[None]:
    """Wait for the release, with a turn now and then; tell once when a stop was seen."""
    say("waiting")
    seen = False
    while not _release(letter).exists():
        # An abort that came with the stop has been told of before this.
        if context.is_stopped and not seen:
            await asyncio.sleep(0.05)
            seen = True
            say("stopped")
        await asyncio.sleep(0.01)
        yield


def _peer_letter(request: PreprocessedRequest) -> str:
    """The first letter of the user's message, whatever follows it."""
    return chr(request.token_ids[len("user: ")] - NUMBERS)


def _release(letter: str) -> Path:
    return Path(os.environ["RELEASE"]) / letter


def _identity(context: SpanContext) -> dict[str, str]:
    return {
        "trace_id": trace.format_trace_id(context.trace_id),
        "span_id": trace.format_span_id(context.span_id),
    }


class _Tell(SpanExporter):
    """Tells each span when it ends."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            tell(
                "span",
                **_identity(span.get_span_context() or trace.INVALID_SPAN_CONTEXT),
                attributes=dict(span.attributes or {}),
                links=[_identity(link.context) for link in span.links],
            )
        return SpanExportResult.SUCCESS
