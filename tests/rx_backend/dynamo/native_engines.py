"""Engines as Dynamo's users write them: dicts, a context with methods, and Dynamo's exceptions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from importlib import import_module
from types import SimpleNamespace
from typing import Any

from rx_backend.testing import Rule

Chunks = AsyncGenerator[dict[str, Any]]
Request = dict[str, Any]


def exception(kind: str) -> Exception:
    """Make one of Dynamo's exceptions."""
    return getattr(import_module("dynamo.llm.exceptions"), kind)("boom")


class Counting:
    """Counts, one token a step, and looks whether it was stopped."""

    def __init__(self, model: str = "native") -> None:
        self.model = model

    @classmethod
    async def from_args(cls, argv: list[str] | None = None) -> tuple[Any, Any]:
        return cls(*argv or ()), SimpleNamespace(namespace="dynamo")

    async def start(self, worker_id: int) -> Any:
        return SimpleNamespace(model=self.model, llm=SimpleNamespace(context_length=2048))

    async def generate(self, request: Request, context: Any) -> Chunks:
        wanted = request["stop_conditions"]["max_tokens"]
        for token in range(wanted):
            await asyncio.sleep(0.01)
            if context.is_stopped():
                yield {"token_ids": [], "index": 0, "finish_reason": "cancelled"}
                return
            yield {"token_ids": [token], "index": 0}
        yield {"token_ids": [], "index": 0, "finish_reason": "length"}

    async def cleanup(self) -> None: ...


class Waiting(Counting):
    """Waits for a stop beside its work, as engines with a device of their own do."""

    async def generate(self, request: Request, context: Any) -> Chunks:
        stopped = asyncio.ensure_future(context.async_killed_or_stopped())
        try:
            for token in range(request["stop_conditions"]["max_tokens"]):
                await asyncio.wait({stopped}, timeout=0.01)
                if stopped.done():
                    yield {"token_ids": [], "finish_reason": "abort"}
                    return
                yield {"token_ids": [token]}
            yield {"token_ids": [], "finish_reason": "stop"}
        finally:
            stopped.cancel()


class Raising(Counting):
    """Ends its streams with exceptions of Dynamo's."""

    async def generate(self, request: Request, context: Any) -> Chunks:
        async for chunk in super().generate(request, context):
            if "finish_reason" not in chunk:
                yield chunk
        raise exception("Cancelled" if context.is_stopped() else "Disconnected")


class DoesNotStart(Counting):
    async def start(self, worker_id: int) -> Any:
        raise exception("CannotConnect")


class Nameless(Counting):
    async def start(self, worker_id: int) -> Any:
        return SimpleNamespace(model="")


class ReadsFields(Counting):
    """Takes the request for an object, and says so by an untyped error."""

    async def generate(self, request: Request, context: Any) -> Chunks:
        if context.is_stopped():
            raise exception("Cancelled")
        yield {"token_ids": list(getattr(request, "token_ids"))}  # noqa: B009 - wrong on purpose


class TextTokens(Counting):
    async def generate(self, request: Request, context: Any) -> Chunks:
        async for chunk in super().generate(request, context):
            yield {**chunk, "token_ids": list(map(str, chunk["token_ids"]))}


class NoTerminal(Counting):
    async def generate(self, request: Request, context: Any) -> Chunks:
        async for chunk in super().generate(request, context):
            if chunk.get("finish_reason") != "length":
                yield chunk


class IgnoresStops(Counting):
    """Waits for a stop that it then forgets."""

    async def generate(self, request: Request, context: Any) -> Chunks:
        async for chunk in super().generate(request, context.detached("deaf")):
            yield chunk


GOOD = [Counting, Waiting, Raising]
BROKEN = [
    (DoesNotStart, Rule.START_FAILED),
    (Nameless, Rule.MODEL_NAME_EMPTY),
    (ReadsFields, Rule.GENERATE_FAILED),
    (TextTokens, Rule.BAD_TOKEN_IDS),
    (NoTerminal, Rule.NO_TERMINAL),
    (IgnoresStops, Rule.CANCELLATION_IGNORED),
]


class NoStart:
    """Made as Dynamo's engines are, and none."""

    @classmethod
    async def from_args(cls, argv: list[str] | None = None) -> tuple[Any, Any]:
        return cls(), None


async def configured() -> tuple[Any, Any]:
    """Make an engine from arguments, as a program of Dynamo's does."""
    return await Counting.from_args(["from-args"])
