"""The conformance kit: one call that reports every rule of the contract that an engine breaks."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Unpack

from operators.assembly import check_arguments, running_loop
from rx_backend.testing.conformance_checks import Check, ConformanceOptions, EngineFactory
from rx_backend.testing.conformance_report import ConformanceError, ConformanceReport, Rule
from rx_backend.testing.conformance_stream import RELEASE_S
from rx_backend.testing.virtual_time import VirtualTimeLoop

__all__ = (
    "ConformanceOptions",
    "EngineFactory",
    "check_engine",
    "engine_conformance_tests",
    "run_conformance",
)


async def check_engine(
    factory: EngineFactory, **options: Unpack[ConformanceOptions]
) -> ConformanceReport:
    """
    Check every rule of the engine contract and report all that are broken (rows K1, E1 to E7).

    Two engines are created. One is cleaned up without a start. The other is started, runs one
    stream, eight at a time, and one that is stopped and aborted like the adapter does, is drained,
    and is cleaned up twice. What a worker awaits must be async. A request with
    ``sampling_options.n`` must get that many answers, each with its own terminal. Only code that
    never yields to the event loop can block the kit.

    Args:
        factory: Creates a new engine.
        **options: See ``ConformanceOptions``.

    Raises:
        TypeError, ValueError: An argument is invalid; the message names it.
    """
    check_arguments(check_engine, factory, **options)
    return await Check(factory, **options).run()


def run_conformance(
    factory: EngineFactory, *, virtual: bool = True, **options: Unpack[ConformanceOptions]
) -> ConformanceReport:
    """
    Run ``check_engine`` from plain code and return its report (row K1).

    Args:
        factory: Creates a new engine.
        virtual: Run in virtual time, where waiting takes no time. Only for engines that wait by
            asyncio alone; one that waits for a process, a device or its own threads needs the real
            clock.
        **options: See ``ConformanceOptions``.

    Raises:
        RuntimeError: A loop is running in this thread; await ``check_engine`` there.
        TypeError, ValueError: An argument is invalid; the message names it.

    >>> from rx_backend.engines import SampleEngine
    >>> run_conformance(SampleEngine).ok
    True
    """
    check_arguments(run_conformance, factory, virtual=virtual, **options)
    if running_loop() is not None:
        raise RuntimeError(
            "an event loop is running in this thread: await check_engine(...) instead"
        )
    loop = VirtualTimeLoop() if virtual else asyncio.new_event_loop()
    try:
        return loop.run_until_complete(check_engine(factory, **options))
    finally:
        # Tasks of the engine that ignore their cancellation are already in the report.
        loop.set_exception_handler(lambda loop, context: None)
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        for left in (tasks, [loop.create_task(loop.shutdown_asyncgens())]):
            if left:
                loop.run_until_complete(asyncio.wait(left, timeout=RELEASE_S))
        loop.close()


def engine_conformance_tests(
    factory: EngineFactory, *, virtual: bool = True, **options: Unpack[ConformanceOptions]
) -> Callable[[Rule], None]:
    """
    Return a test that ``pytest`` runs once per rule of the engine contract (row K1).

    Two lines in a test file are enough::

        from rx_backend.testing import engine_conformance_tests
        test_conformance = engine_conformance_tests(MyEngine)

    The first of these tests checks the engine for all of them.

    Args:
        factory: Creates a new engine.
        virtual: See ``run_conformance``.
        **options: See ``ConformanceOptions``.

    Raises:
        ImportError: ``pytest`` is not installed.
        TypeError, ValueError: An argument is invalid; the message names it.
    """
    check_arguments(engine_conformance_tests, factory, virtual=virtual, **options)
    import pytest  # noqa: PLC0415  # only those who test have it

    @cache
    def report() -> ConformanceReport:
        return run_conformance(factory, virtual=virtual, **options)

    @pytest.mark.parametrize("rule", list(Rule), ids=str)
    def test_engine_conformance(rule: Rule) -> None:
        whole = report()
        violation = whole.violation(rule)
        if violation is not None:
            alone = dataclasses.replace(whole, violations=[violation])
            raise ConformanceError(alone)
        if rule in whole.unchecked:
            pytest.fail(f"{rule} ({rule.row}): not checked, the engine did not start")

    return test_engine_conformance
