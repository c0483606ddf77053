"""Every way in which a request can end, and how that is recorded."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from rx_backend.adapter import EngineAdapter
from rx_backend.engine import LLMEngine
from rx_backend.errors import Disconnected, InvalidArgument
from rx_backend.protocols import LLMEngineOutput
from tests.engines import Step, Stream, collect, stop, token
from tests.meters import Meters
from tests.spans import Spans

__all__ = ("ENDS", "SECRET", "SETUPS", "End", "Leave", "metered", "read_all")

SECRET = "what nobody may read"

Leave = Callable[[Stream], Awaitable[None]]


class End(NamedTuple):
    """What the engine does, what the consumer does, and how that is recorded."""

    script: list[Step]
    leave: Leave
    reason: str
    error_type: str | None = None
    description: str = ""
    event: str = "request ended"


async def read_all(stream: Stream) -> None:
    await collect(stream)


async def _close_after_one(stream: Stream) -> None:
    await anext(stream)
    await stream.aclose()


async def _cancelled_task(stream: Stream) -> None:
    task = asyncio.create_task(collect(stream))
    await asyncio.sleep(2.5)
    task.cancel()
    await asyncio.wait([task])


async def _forget_after_one(stream: Stream) -> None:
    await anext(stream)
    del stream
    gc.collect()
    await asyncio.sleep(0)


_LEFT = ("dropped", "Dropped", "stream dropped before terminal", "request dropped")
_ENDLESS: list[Step] = [1, token(1), 9, stop()]


def _failed(step: Step, kind: str) -> End:
    return End([1, token(1), step], read_all, "failed", kind, f"Backend({kind})", "request failed")


ENDS: dict[str, End] = {
    "stop": End([1, token(1), stop()], read_all, "stop"),
    "length": End([1, token(1), LLMEngineOutput.length()], read_all, "length"),
    "cancelled": End([1, token(1), LLMEngineOutput.cancelled()], read_all, "cancelled"),
    "error-terminal": End(
        [1, token(1), LLMEngineOutput.error(SECRET)],
        read_all,
        "error",
        "ErrorTerminal",
        f'Error("{SECRET}")',
        "request failed",
    ),
    "typed-error": _failed(Disconnected(SECRET), "Disconnected"),
    "any-error": _failed(KeyError(SECRET), "Unknown"),
    "no-terminal": _failed(LLMEngineOutput(), "StreamIncomplete"),
    "closed": End(_ENDLESS, _close_after_one, *_LEFT),
    "task-cancelled": End(_ENDLESS, _cancelled_task, *_LEFT),
    "forgotten": End(_ENDLESS, _forget_after_one, *_LEFT),
}

# Requests that never have a stream: what the set-up does; reason, type, description and event.
SETUPS: dict[str, tuple[Step, tuple[str, str, str, str]]] = {
    "setup-typed": (
        InvalidArgument(SECRET),
        ("setup_failed", "InvalidArgument", "setup_failed", "request failed"),
    ),
    "setup-untyped": (
        KeyError(SECRET),
        ("setup_failed", "Unknown", "setup_failed", "request failed"),
    ),
    "setup-left": (60, _LEFT),
}


def metered(
    engine: LLMEngine,
    meters: Meters,
    spans: Spans | None = None,
    mode: str = "agg",
    **more: Any,
) -> EngineAdapter:
    """Return an adapter on the loop's clock that is measured."""
    tracer = None if spans is None else spans.tracer
    clock = asyncio.get_running_loop().time
    return EngineAdapter(
        engine, mode, tracer=tracer, meter_provider=meters.provider, clock=clock, **more
    )
