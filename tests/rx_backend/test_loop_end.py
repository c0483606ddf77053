"""What becomes of open streams when their event loop shuts down (row S7)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import pytest
from reactivex import operators as ops

import tests.leaks
from operators import coalesce, deadlines, drain_until_first_token, heartbeat, map_async
from operators.authoring import AnyOperator
from operators.drains import Drains
from rx_backend import (
    Annotated,
    EngineAdapter,
    EngineConfig,
    FailoverEngine,
    HedgedEngine,
    LLMEngine,
    LLMEngineOutput,
    ResponseStream,
)
from rx_backend.testing import VirtualTimeLoop, run_virtual
from tests.leaks import LeakWatch
from tests.rx_backend._engines import collect, request, token


async def same(item: Any) -> Any:
    return item


BEHIND: dict[str, Callable[[], list[AnyOperator]]] = {
    "nothing": list,
    "coalesce": lambda: [coalesce()],
    "heartbeat": lambda: [heartbeat(5.0, Annotated[LLMEngineOutput](comment=["ping"]))],
    "deadlines": lambda: [deadlines(idle_s=5.0)],
    "map_async": lambda: [map_async(same)],
    "drain": lambda: [drain_until_first_token(drains=Drains())],
    "delay": lambda: [ops.delay(0.001)],
    "map": lambda: [ops.map(lambda item: item)],
}


LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [VirtualTimeLoop]
if find_spec("uvloop") is not None:
    import uvloop

    LOOPS.append(uvloop.new_event_loop)


class Slow(LLMEngine):
    """An engine whose clean-up has to wait."""

    def __init__(self) -> None:
        self.opened = 0
        self.closed = 0
        self.cleaned_up = 0

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model="slow")

    async def generate(self, request: object, context: object) -> AsyncGenerator[LLMEngineOutput]:
        self.opened += 1
        try:
            for n in range(1000):
                await asyncio.sleep(0.001)
                yield token(n)
        finally:
            try:
                await asyncio.sleep(0.01)
                self.cleaned_up += 1
            finally:
                self.closed += 1


async def leave_open(stream: ResponseStream[Any], how: str, kept: list[Any]) -> None:
    """Read a stream in some way, not to its end; *kept* is what refers to it then."""
    if how == "subscribed":
        kept.append(stream.subscribe(lambda _: None))
        await asyncio.sleep(0.005)
    elif how == "in_a_task":
        kept.append(asyncio.ensure_future(collect(stream)))
        await asyncio.sleep(0.005)
    else:
        await anext(stream)
        kept.extend([stream] if how == "kept" else [])


@pytest.mark.rows("S7")
@pytest.mark.parametrize("behind", BEHIND)
@pytest.mark.parametrize("how", ["kept", "lost", "in_a_task", "subscribed"])
@pytest.mark.parametrize("new_loop", LOOPS)
def test_open_streams_are_closed_with_their_loop(
    leaks: LeakWatch,
    monkeypatch: pytest.MonkeyPatch,
    behind: str,
    how: str,
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """`asyncio.run` waits for the engine's clean-up, and asyncio complains of nothing."""
    leaks.allow("task not done|generator not closed")
    # The watch gives the loop some turns before its end, in which a release may begin.
    monkeypatch.setattr(
        asyncio.runners, "_cancel_all_tasks", vars(tests.leaks)["_cancel_all_tasks"]
    )
    engine = Slow()
    complaints: list[Any] = []
    kept: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        adapter = EngineAdapter(engine).with_operators(*BEHIND[behind]())
        stream = await adapter.generate(request())
        await leave_open(stream, how, kept)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    assert (engine.closed, complaints) == (1, [])
    # `asyncio.run` cancels all tasks, and so a release that has begun by then.
    assert engine.cleaned_up == 1 or how == "lost"


@pytest.mark.rows("S7")
@pytest.mark.parametrize("how", ["kept", "lost", "in_a_task"])
@pytest.mark.parametrize("combine", [FailoverEngine, partial(HedgedEngine, after_s=0.002)])
def test_engines_made_of_engines_are_closed_with_their_loop(
    leaks: LeakWatch, how: str, combine: Callable[[Any, Any], LLMEngine]
) -> None:
    """Their engines' generators are left to their streams too."""
    leaks.allow("task not done|generator not closed")
    engines = [Slow(), Slow()]
    complaints: list[Any] = []
    kept: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        stream = await EngineAdapter(combine(*engines)).generate(request())
        await leave_open(stream, how, kept)

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())
    assert complaints == []
    assert [engine.closed for engine in engines] == [engine.opened for engine in engines]


@pytest.mark.rows("S7")
def test_a_release_is_not_left_out_where_its_task_is_cancelled_before_it_began(
    leaks: LeakWatch,
) -> None:
    """As `asyncio.run` cancels all tasks, and so the one that was to close a lost stream."""
    leaks.allow("task not done")
    engine = Slow()

    async def main() -> None:
        stream = await EngineAdapter(engine).generate(request())
        await anext(stream)
        stream.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert len(others) == 1
        for task in others:
            task.cancel()
        await stream.aclose()
        assert engine.closed == 1

    run_virtual(main())
