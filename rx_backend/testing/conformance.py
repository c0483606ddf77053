"""The conformance kit: one call that reports every rule of the contract an engine breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias, TypedDict, TypeVar, Unpack

from rx_backend.protocols import PreprocessedRequest
from rx_backend.testing.conformance_check import Check
from rx_backend.testing.conformance_report import ConformanceReport
from rx_backend.testing.conformance_stream import LET_GO_S, Limits
from rx_backend.testing.virtual_run import is_loop_running
from rx_backend.testing.virtual_time import VirtualTimeLoop

__all__ = ("ConformanceOptions", "EngineFactory", "check_engine", "run_conformance")

T = TypeVar("T")

EngineFactory: TypeAlias = Callable[[], object]
"""Makes a fresh engine, or something to await that gives one; see `from_any_engine`."""


class ConformanceOptions(TypedDict, total=False):
    """
    What can be set on a run of the conformance kit. All times are seconds on the loop's clock.

    Attributes:
        request: What the streams ask for; three prompt tokens and at most 8 new ones by default.
        cancel_request: What the stream asks for that is stopped after its first chunk. It should
            be long; *request* with at most 4096 new tokens by default.
        timeout_s: In this time an engine must have seen a stop (2).
        stream_timeout_s: In this time a stream must have reached its terminal (30).
        start_timeout_s: In this time an engine must have started, and cleaned up (600).
        calls: How many streams run at the same time (8).
        max_items: More items than these are a stream without an end (10,000).
    """

    request: PreprocessedRequest
    cancel_request: PreprocessedRequest
    timeout_s: float
    stream_timeout_s: float
    start_timeout_s: float
    calls: int
    max_items: int


async def check_engine(
    factory: EngineFactory, **options: Unpack[ConformanceOptions]
) -> ConformanceReport:
    """
    Try every rule of the engine contract and report all that are broken (rows K1, E1 to E6).

    Two engines are made: one is cleaned up without a start, the other is started, asked for a
    stream, for several at a time and for one that is stopped and aborted, as the adapter does it,
    and is cleaned up twice. A request with ``sampling_options.n`` must get that many answers, each
    with a terminal of its own. Nothing that the engine does holds up the kit, except code that
    never yields to the event loop.

    Args:
        factory: Makes a fresh engine.
        **options: See ``ConformanceOptions``.
    """
    limits = Limits(
        timeout_s=options.get("timeout_s", 2.0),
        stream_timeout_s=options.get("stream_timeout_s", 30.0),
        start_timeout_s=options.get("start_timeout_s", 600.0),
        max_items=options.get("max_items", 10_000),
    )
    return await Check(
        factory,
        limits,
        request=options.get("request"),
        cancel_request=options.get("cancel_request"),
        calls=options.get("calls", 8),
    ).run()


def run_conformance(
    factory: EngineFactory, *, virtual: bool = True, **options: Unpack[ConformanceOptions]
) -> ConformanceReport:
    """
    Run ``check_engine`` from plain code and give its report (row K1).

    Args:
        factory: Makes a fresh engine.
        virtual: Run in virtual time, where waiting costs nothing. Only for engines that wait by
            asyncio alone; one that waits for a process, a device or threads of its own needs the
            real clock.
        **options: See ``ConformanceOptions``.

    Raises:
        RuntimeError: Called while a loop is running in this thread; await ``check_engine`` there.

    >>> from rx_backend.engines import SampleEngine
    >>> run_conformance(SampleEngine).ok
    True
    """
    if is_loop_running():
        raise RuntimeError(
            "an event loop is running in this thread: await check_engine(...) instead"
        )
    loop = VirtualTimeLoop() if virtual else asyncio.new_event_loop()
    return _run(check_engine(factory, **options), loop)


def _run(coroutine: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> T:
    """Run to the end and close the loop, even if an engine's tasks don't let go."""
    try:
        return loop.run_until_complete(coroutine)
    finally:
        # What is destroyed while it still waits is what the report tells of.
        loop.set_exception_handler(lambda loop, context: None)
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        for left in (tasks, [loop.create_task(loop.shutdown_asyncgens())]):
            if left:
                loop.run_until_complete(asyncio.wait(left, timeout=LET_GO_S))
        loop.close()
