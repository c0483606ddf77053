"""Engines that the workers of these tests serve, in processes of their own."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

from rx_backend import (
    CannotConnect,
    EngineConfig,
    InvalidArgument,
    LLMEngine,
    LLMEngineOutput,
    PreprocessedRequest,
    RequestContext,
)
from rx_backend.protocols import usage
from rx_backend.worker.model_files import NUMBERS
from rx_backend.worker.nodelay import listening_sockets

WAIT, FAIL_FIRST, FAIL_LATER = "w", "f", "l"
MODEL = "counting"


def say(line: str) -> None:
    """Tell the test, in one piece."""
    os.write(1, f"{line}\n".encode())


class CountingEngine(LLMEngine):
    """
    Counts 0, 1, 2; the first letter of the request's text picks something else.

    `w`: after the first token it waits for the file that RELEASE names, and for a stop.
    `f`: it fails with a typed error before the first token; `l`: with any error after it.
    """

    async def start(self, worker_id: int) -> EngineConfig:
        say(f"start {worker_id > 0}")
        return EngineConfig(
            model=MODEL, context_length=2048, kv_cache_block_size=32, total_kv_blocks=640
        )

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncIterator[LLMEngineOutput]:
        letter = _first_letter(request.token_ids)
        if request.is_probe:
            say(f"probed {letter}")
        if letter == FAIL_FIRST:
            raise InvalidArgument("no such prompt")
        wanted = request.stop_conditions.max_tokens or 8
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
                await _released_or_stopped(context)

    async def abort(self, context: RequestContext) -> None:
        say("abort")

    async def drain(self) -> None:
        say("drain")

    async def cleanup(self) -> None:
        say("cleanup")

    async def health_check_payload(self) -> dict[str, Any] | None:
        letter = os.environ.get("PROBE", "c")
        return {"token_ids": [_BYTE_0 + ord(letter)], "stop_conditions": {"max_tokens": 2}}


class ListeningEngine(CountingEngine):
    """Says of each socket that its process listens at whether what it accepts sends at once."""

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncIterator[LLMEngineOutput]:
        for listening in listening_sockets():
            with listening:
                say(f"at once {listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0}")
        yield LLMEngineOutput.stop()


class DeafEngine(CountingEngine):
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


class TimeoutEngine(DeafEngine):
    """Has its task in its frame, by a time limit."""

    async def _chunks(self, wanted: int) -> AsyncIterator[LLMEngineOutput]:
        async with asyncio.timeout(60):
            async for chunk in super()._chunks(wanted):
                yield chunk


class GroupEngine(DeafEngine):
    """Has its task in its frame, by a task group."""

    async def _chunks(self, wanted: int) -> AsyncIterator[LLMEngineOutput]:
        async with asyncio.TaskGroup() as group:
            beside = group.create_task(asyncio.sleep(60))
            async for chunk in super()._chunks(wanted):
                yield chunk
            beside.cancel()


class TaskEngine(DeafEngine):
    """Has the task of every pull in its frame."""

    async def _chunks(self, wanted: int) -> AsyncIterator[LLMEngineOutput]:
        tasks: list[object] = []
        async for chunk in super()._chunks(wanted):
            tasks.append(asyncio.current_task())
            yield chunk


class TwinsEngine(CountingEngine):
    """Counts for each answer, in turns; each answer is by one longer than the one before."""

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncIterator[LLMEngineOutput]:
        wanted, answers = 4, request.sampling_options.n or 1
        for made in range(wanted + answers):
            for index in range(answers):
                if made < wanted + index:
                    yield LLMEngineOutput([made], index=index)
                elif made == wanted + index:
                    last = LLMEngineOutput.length()
                    last.index = index
                    yield last


class FailingEngine(CountingEngine):
    """Fails to start."""

    async def start(self, worker_id: int) -> EngineConfig:
        raise CannotConnect("no device to be had")


class NamelessEngine(CountingEngine):
    """Starts, with a config that names no model."""

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model="")


async def _released_or_stopped(context: RequestContext) -> None:
    release = os.environ["RELEASE"]
    while not (os.access(release, os.F_OK) or context.is_stopped):  # noqa: ASYNC110 - a file
        await asyncio.sleep(0.01)


# The made-up tokenizer has the bytes after the numbers.
_BYTE_0 = NUMBERS


def _first_letter(token_ids: list[int]) -> str:
    """The first letter of the user's message, or of a prompt of one token."""
    if len(token_ids) == 1:
        return chr(token_ids[0] - _BYTE_0)
    text = bytes(token - _BYTE_0 for token in token_ids).decode()
    return text.removeprefix("user: ")[0]
