"""Every kind of leak is caught, wherever the test ran its coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from rx_backend.testing import run_virtual

ROOT = Path(__file__).parents[1]

Run = Callable[[Coroutine[Any, Any, Any]], Any]

kept: list[object] = []


def run_in_plain_loop(coroutine: Coroutine[Any, Any, Any]) -> None:
    loop = asyncio.new_event_loop()
    loop.run_until_complete(coroutine)
    loop.close()


async def numbers() -> AsyncGenerator[int]:
    for number in range(3):
        yield number


async def leave_task() -> None:
    kept.append(asyncio.create_task(asyncio.Event().wait(), name="left-over"))
    await asyncio.sleep(0)


async def leave_generator() -> None:
    kept.append(generator := numbers())
    await anext(generator)


async def leave_exception() -> None:
    async def fail() -> None:
        raise LookupError

    asyncio.create_task(fail())  # noqa: RUF006 - nobody asks for its result
    await asyncio.sleep(0)


async def leave_nothing() -> None:
    async with asyncio.timeout(1):
        assert [number async for number in numbers()] == [0, 1, 2]
    task = asyncio.create_task(asyncio.Event().wait())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    kept.append(generator := numbers())
    await anext(generator)
    await generator.aclose()


RUNS: list[Run] = [run_virtual, asyncio.run, run_in_plain_loop]

# What is left, and what is said of it.
LEAVING = {
    "task": "task not done: left-over",
    "generator": "async generator not closed",
    "exception": "asyncio logged: Task exception was never retrieved",
    "loop": "event loop not closed",
    "span": "span not ended: 'left-open'",
    "ended_span": "opentelemetry.sdk.trace logged",
    "context": "context left behind",
    "coroutine": "coroutine 'leave_nothing' was never awaited",
}


def test_the_fixture_fails_leaking_tests(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has an error, in every loop; a failing one is spared a second, and what is allowed is none."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest("from tests.conftest import *")
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    pytester.makepyfile(
        """
        import asyncio
        import pytest
        import structlog
        from opentelemetry.sdk.trace import TracerProvider
        from tests import test_leak_fixture as leaving

        in_every_loop = pytest.mark.parametrize("run", leaving.RUNS)

        @in_every_loop
        def test_clean(run):
            run(leaving.leave_nothing())

        def test_allowed(leaks):
            leaks.allow("left-over")
            asyncio.run(leaving.leave_task())

        @in_every_loop
        def test_leaves_task(run):
            run(leaving.leave_task())

        @in_every_loop
        def test_leaves_generator(run):
            run(leaving.leave_generator())

        @in_every_loop
        def test_leaves_exception(run):
            run(leaving.leave_exception())

        def test_leaves_loop():
            asyncio.new_event_loop()

        def test_leaves_span():
            leaving.kept.append(TracerProvider().get_tracer("own").start_span("left-open"))

        def test_leaves_ended_span(spans):
            span = spans.tracer.start_span("twice")
            span.end()
            span.end()

        def test_leaves_context():
            structlog.contextvars.bind_contextvars(request_id="r1")

        def test_leaves_coroutine():
            cycle = [leaving.leave_nothing()]
            cycle.append(cycle)

        def test_fails():
            asyncio.run(leaving.leave_task())
            raise LookupError
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:randomly", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=4 + 9 + 5, failed=1, errors=9 + 5)
    for name, finding in LEAVING.items():
        result.stdout.fnmatch_lines([f"*ERROR at teardown of test_leaves_{name}*", f"*{finding}*"])
