"""Every kind of leak is caught, wherever the test ran its coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from pathlib import Path
from typing import Any

import pytest
import structlog
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import TracerProvider

from rx_backend.testing import run_virtual
from tests.leaks import LeakWatch
from tests.spans import Spans

ROOT = Path(__file__).parents[1]

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def run_in_plain_loop(coroutine: Coroutine[Any, Any, Any]) -> None:
    loop = asyncio.new_event_loop()
    loop.run_until_complete(coroutine)
    loop.close()


async def numbers() -> AsyncGenerator[int]:
    for number in range(3):
        yield number


kept: list[object] = []


@pytest.fixture(autouse=True)
def drop_kept(leaks: LeakWatch) -> Generator[None]:
    yield
    kept.clear()
    leaks.allow("Task was destroyed but it is pending")


async def leave_task() -> None:
    task = asyncio.create_task(asyncio.Event().wait(), name="left-over")
    kept.append(task)
    await asyncio.sleep(0)


async def leave_generator() -> None:
    generator = numbers()
    kept.append(generator)
    await anext(generator)


async def leave_exception() -> None:
    async def fail() -> None:
        raise LookupError

    kept.append(asyncio.create_task(fail()))
    await asyncio.sleep(0)
    kept.clear()


async def leave_nothing() -> None:
    async with asyncio.timeout(1):
        assert [number async for number in numbers()] == [0, 1, 2]
    task = asyncio.create_task(asyncio.Event().wait())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    generator = numbers()
    kept.append(generator)
    await anext(generator)
    await generator.aclose()


@pytest.mark.parametrize("run", [run_virtual, asyncio.run, run_in_plain_loop])
@pytest.mark.parametrize(
    ("leave", "finding"),
    [
        (leave_task, "task not done: left-over"),
        (leave_generator, "async generator not closed"),
        (leave_exception, "asyncio logged: Task exception was never retrieved"),
    ],
)
def test_leaks_of_a_loop_are_found(
    run: Run, leave: Callable[[], Coroutine[Any, Any, None]], finding: str
) -> None:
    """A pending task, an open async generator and a lost exception are seen in every loop."""
    with LeakWatch() as watch:
        run(leave())
        found = watch.leaks()
    assert any(leak.startswith(finding) for leak in found), found


@pytest.mark.parametrize("run", [run_virtual, asyncio.run, run_in_plain_loop])
def test_a_clean_run_has_no_findings(run: Run) -> None:
    """Tasks that were cancelled and awaited and generators that were closed are no leaks."""
    with LeakWatch() as watch:
        run(leave_nothing())
        assert not watch.leaks()


def test_an_open_loop_is_found_and_closed() -> None:
    """A loop that nobody closed is a finding, with the task that still waits in it."""
    with LeakWatch() as watch:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(leave_task())
        found = watch.leaks()
    assert [leak.split(":")[0] for leak in found] == ["event loop not closed", "task not done"]
    assert loop.is_closed()


def test_open_spans_of_any_provider_are_found(spans: Spans) -> None:
    """A span that never ended is a finding, also when the code made its own provider."""
    with LeakWatch() as watch:
        own = TracerProvider(shutdown_on_exit=False)
        left = own.get_tracer("own").start_span("left-open")
        spans.tracer.start_span("closed").end()
        assert watch.leaks() == ["span not ended: 'left-open'"]
    left.end()
    assert spans.one().name == "closed"


def test_a_span_that_ends_twice_is_found(spans: Spans) -> None:
    """Ending a span again, or writing to it afterwards, is a finding."""
    with LeakWatch() as watch:
        span = spans.tracer.start_span("twice")
        span.end()
        span.end()
        span.set_attribute("late", value=True)
        found = watch.leaks()
    assert len(found) == 2
    assert all("opentelemetry.sdk.trace logged" in leak for leak in found)


def test_a_context_left_attached_is_found() -> None:
    """An OpenTelemetry context, or a log context, that outlives the test is a finding."""
    with LeakWatch() as watch:
        token = otel_context.attach(otel_context.set_value("key", 1))
        tokens = structlog.contextvars.bind_contextvars(request_id="r1")
        found = watch.leaks()
    structlog.contextvars.reset_contextvars(**tokens)
    otel_context.detach(token)
    assert len(found) == 2
    assert all(leak.startswith("context left behind") for leak in found)


def test_allowed_findings_are_left_out() -> None:
    """A test may say which leak it makes on purpose."""
    with LeakWatch() as watch:
        watch.allow("left-over")
        asyncio.run(leave_task())
        assert not watch.leaks()


def test_the_fixture_fails_leaking_tests(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a run of pytest each leaking test has an error, and a failing one is spared a second."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest("from tests.conftest import *")
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    pytester.makepyfile(
        """
        import asyncio
        import pytest
        from tests.test_leak_fixture import leave_nothing, leave_task, numbers

        def test_clean():
            asyncio.run(leave_nothing())

        def test_leaks_task():
            asyncio.run(leave_task())

        def test_leaks_span(spans):
            spans.tracer.start_span("left-open")

        def test_never_awaits():
            cycle = [leave_nothing()]
            cycle.append(cycle)

        def test_fails():
            asyncio.run(leave_task())
            raise LookupError
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:randomly", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=4, failed=1, errors=3)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_leaks_task*",
            "*task not done: left-over*",
            "*ERROR at teardown of test_leaks_span*",
            "*span not ended: 'left-open'*",
            "*ERROR at teardown of test_never_awaits*",
            "*coroutine 'leave_nothing' was never awaited*",
        ]
    )
