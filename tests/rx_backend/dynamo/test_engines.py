"""Engines written for Dynamo behind our adapter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest

from rx_backend.context import RequestContext
from rx_backend.dynamo import EngineContext, from_dynamo_engine
from rx_backend.engine import EngineConfig
from rx_backend.errors import KINDS, InvalidArgument
from rx_backend.protocols import FinishReason, to_builtins
from tests.engines import adapter_of, collect, request, virtual
from tests.rx_backend.dynamo._runtime import NEEDS

pytestmark = NEEDS


class Native:
    """An engine as Dynamo's users write them, with a task that waits for the stop."""

    def __init__(self, kind: str | None = None) -> None:
        self.kind = kind
        self.seen: list[dict[str, Any]] = []
        self.events: list[str] = []

    async def start(self, worker_id: int) -> Any:
        return SimpleNamespace(
            model="m",
            served_model_name="served",
            runtime_data=None,
            model_aliases=["alias"],
            llm=SimpleNamespace(context_length=4096, kv_cache_block_size=16),
        )

    async def generate(self, request: dict[str, Any], context: Any) -> AsyncGenerator[Any]:
        self.seen.append(request)
        yield {"token_ids": [7], "index": 0}
        if self.kind is not None:
            raise getattr(import_module("dynamo.llm.exceptions"), self.kind)("boom")
        await context.async_killed_or_stopped()
        assert context.is_stopped()
        self.events.append(f"stopped {context.id()}")
        yield {"token_ids": [], "index": 0, "finish_reason": "cancelled"}

    async def abort(self, context: Any) -> None:
        self.events.append(f"abort {context.id()}")

    async def is_quiescent(self) -> None:
        return None

    async def kv_event_sources(self) -> list[str]:
        return ["source"]


class Whole(Native):
    """One with all optional methods."""

    needs_tokenizer = True

    async def drain(self) -> None:
        self.events.append("drain")

    async def cleanup(self) -> None:
        self.events.append("cleanup")

    async def is_quiescent(self) -> Any:
        return True

    async def health_check_payload(self) -> dict[str, Any]:
        return {"token_ids": [1]}


@pytest.mark.rows("E2", "E4", "A2")
@virtual
async def test_a_dynamo_engine_runs_unchanged() -> None:
    """It gets the runtime's dict and a context with methods, and sees a stop from our side."""
    native = Native()
    context = RequestContext("r1")
    stream = await adapter_of(from_dynamo_engine(native)).generate(request(), context)
    async with aclosing(stream):
        first = await anext(stream)
        asyncio.get_running_loop().call_soon(context.stop_generating)
        (rest,) = await collect(stream)
    assert native.seen == [to_builtins(request())]
    assert first.data is not None
    assert first.data.token_ids == [7]
    assert rest.data is not None
    assert rest.data.finish_reason == FinishReason.CANCELLED
    assert sorted(native.events) == ["abort r1", "stopped r1"]


@pytest.mark.rows("S6")
@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"ResponseTimeout"}))
@virtual
async def test_an_exception_of_a_dynamo_engine_keeps_its_kind(kind: str) -> None:
    """The error item has the kind that the engine raised."""
    engine = from_dynamo_engine(Native(kind))
    *_, item = await collect(await adapter_of(engine).generate(request()))
    assert type(item.error) is KINDS[kind]
    assert item.comment == ["boom"]


@pytest.mark.rows("E1", "E5")
@virtual
async def test_a_dynamo_engines_config_is_converted() -> None:
    """Its config in our words; what it lacks has a safe answer; what is its own can be reached."""
    native = Native()
    engine = from_dynamo_engine(native)
    assert await engine.start(1) == EngineConfig(
        model="m",
        served_model_name="served",
        model_aliases=["alias"],
        context_length=4096,
        kv_cache_block_size=16,
    )
    assert await engine.is_quiescent() is False
    assert await engine.health_check_payload() is None
    await engine.drain()
    await engine.cleanup()
    own: Any = engine
    assert await own.kv_event_sources() == ["source"]
    assert not engine.needs_tokenizer
    with pytest.raises(InvalidArgument, match="has no method start"):
        from_dynamo_engine(object())


@pytest.mark.rows("E5")
@virtual
async def test_optional_methods_of_a_dynamo_engine_are_called() -> None:
    """Each as on an engine of ours."""
    native = Whole()
    engine = from_dynamo_engine(native)
    assert engine.needs_tokenizer
    assert await engine.health_check_payload() == {"token_ids": [1]}
    assert await engine.is_quiescent() is True
    await engine.drain()
    await engine.cleanup()
    assert native.events == ["drain", "cleanup"]


@virtual
async def test_a_contexts_future_can_be_cancelled() -> None:
    """An engine that cancels its wait leaves nothing behind, and a later stop is harmless."""
    ours = RequestContext("r1", trace_headers={"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"})
    context = EngineContext(ours)
    given_up, kept = context.async_killed_or_stopped(), context.async_killed_or_stopped()
    given_up.cancel()
    ours.kill()
    assert await kept
    assert context.is_killed()
    assert (context.trace_id, context.span_id) == ("a" * 32, "b" * 16)
    with context.start_span("work") as span:
        span.set_attribute("key", 1)


class Acting(Native):
    """Does something with its context ahead of its first token, and waits."""

    def __init__(self, act: Callable[[Any], object]) -> None:
        super().__init__()
        self.act = act

    async def generate(self, request: dict[str, Any], context: Any) -> AsyncGenerator[Any]:
        self.act(context)
        await asyncio.sleep(10)
        yield {"token_ids": [7], "index": 0}
        yield {"token_ids": [], "index": 0, "finish_reason": "cancelled"}


@pytest.mark.rows("A2", "E4")
@virtual
async def test_a_dynamo_engine_may_stop_its_own_request() -> None:
    """Which is one abort, as of any other stop."""
    native, context = Acting(lambda context: context.stop_generating()), RequestContext("r1")
    await collect(await adapter_of(from_dynamo_engine(native)).generate(request(), context))
    assert context.is_stopped
    assert native.events == ["abort r1"]


@pytest.mark.rows("A4", "C4")
@pytest.mark.parametrize("is_told", [True, False])
@virtual
async def test_a_dynamo_engine_may_notify_its_first_token(is_told: bool) -> None:
    """In decode mode that opens the gate for the abort, before the chunk."""
    native = Acting(lambda context: context.notify_first_token() if is_told else None)
    context = RequestContext("r1")
    adapter = adapter_of(from_dynamo_engine(native), "decode")
    stream = await adapter.generate(request(), context)
    pull = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(1)
    context.stop_generating()
    await asyncio.sleep(1)
    assert native.events == ["abort r1"] * is_told
    await pull
    await stream.aclose()
    assert native.events == ["abort r1"]


@pytest.mark.rows("C1")
def test_changes_of_metadata_stay_in_the_engine() -> None:
    """It may change it, also as a whole, and hand it on to a detached context; the client's stays."""
    headers = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    ours = RequestContext("r1", {"tenant": "a"}, trace_headers=headers)
    context = EngineContext(ours)
    assert context.metadata == {"tenant": "a"}
    context.metadata["step"] = "1"
    detached = context.detached("r2")
    assert (detached.metadata, detached.trace_headers()) == ({"tenant": "a", "step": "1"}, headers)
    context.metadata = given = {"tenant": "b"}
    context.metadata["step"] = "2"
    assert (context.metadata, given) == ({"tenant": "b", "step": "2"}, {"tenant": "b"})
    assert ours.metadata == {"tenant": "a"}
