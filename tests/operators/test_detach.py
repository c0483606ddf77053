"""`FusedRun.detach`: what is left of a run, as a run of its own."""

from __future__ import annotations

import asyncio
import contextvars
import gc
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from operators import fuse
from operators.authoring import FusedRun, Stage, detach, operator
from tests.operators._help import Engine, Seen, collect, same, spy, twice, virtual

NUMBER: contextvars.ContextVar[int] = contextvars.ContextVar("NUMBER", default=0)


@pytest.mark.rows("S1", "S4", "S7")
@pytest.mark.parametrize("pulled", [0, 1, 3])
@virtual
async def test_what_is_left_goes_on(pulled: int) -> None:
    """It begins with the next item, also in the middle of an emission; nobody else ends it."""
    journal: list[str] = []
    engine = Engine([1, 2, 3], every_s=1.0)
    run = fuse(engine(), [spy(journal), twice()], on_end=lambda: journal.append("on_end"))
    for _ in range(pulled):
        await anext(run)
    rest = run.detach()
    before = [*journal]
    await run.aclose()
    run.close()
    del run
    gc.collect()
    assert journal == before
    assert await collect(rest) == Seen([1, 1, 2, 2, 3, 3][pulled:], "completed")
    assert journal == ["1", "2", "3", "|", "on_end"]
    assert engine.closed == 1


@pytest.mark.rows("S7")
@virtual
async def test_the_run_itself_is_over() -> None:
    """It gives nothing, and neither knows nor takes what becomes of the rest."""
    run = fuse(Engine([1], error=LookupError("gone"))(), [same()])
    rest = run.detach()
    assert await collect(run) == Seen([], "completed")
    assert await collect(run.detach()) == Seen([], "completed")
    assert await anext(rest) == 1
    with pytest.raises(LookupError):
        await anext(rest)
    assert not run.ended
    assert await collect(run) == Seen([], "completed")


@pytest.mark.rows("S7")
@pytest.mark.parametrize("way", ["close", "aclose", "lose", "cancel", "close in a pull"])
@virtual
async def test_the_rest_is_dropped_like_any_run(way: str) -> None:
    """Its stages and its engine are released, once."""
    journal: list[str] = []
    engine = Engine([1, 2], every_s=1.0, journal=journal)
    rest = [fuse(engine(), [spy(journal)]).detach()]
    await anext(rest[0])
    if way in {"cancel", "close in a pull"}:
        pull = asyncio.create_task(collect(rest[0]))
        await asyncio.sleep(0.5)
        if way == "cancel":
            pull.cancel()
        else:
            rest[0].close()
        await asyncio.wait([pull])
    elif way == "aclose":
        await rest[0].aclose()
    elif way == "close":
        rest[0].close()
    else:
        rest.clear()
    assert sorted(journal) == ["!", "1", "closed", "pull"]


@pytest.mark.rows("P9")
@virtual
async def test_the_rest_may_go_on_in_a_context_of_its_own() -> None:
    """Stages, engine and closing run in there, whoever pulls; what they set is seen by all of them."""
    seen: list[int] = []

    async def engine() -> AsyncGenerator[int]:
        before = NUMBER.set(NUMBER.get() + 1)
        try:
            for _ in range(3):
                seen.append(NUMBER.get())
                NUMBER.set(NUMBER.get() + 1)
                await asyncio.sleep(1)
                yield NUMBER.get()
        finally:
            await asyncio.sleep(1)
            seen.append(NUMBER.get())
            NUMBER.reset(before)

    @operator
    def look() -> Stage[int, int]:
        item = yield
        seen.append(10 * NUMBER.get())
        yield detach(item)

    NUMBER.set(5)
    run: FusedRun[int] = fuse(engine(), [look()])
    context = contextvars.copy_context()
    rest = run.detach(context.run)
    NUMBER.set(100)
    assert await asyncio.create_task(_pull(rest)) == 7
    assert await _pull(rest) == 8
    await rest.aclose()
    assert seen == [6, 70, 7, 8]
    assert (NUMBER.get(), context[NUMBER]) == (100, 5)


async def _pull(run: FusedRun[int]) -> int:
    return await anext(run)


@virtual
async def test_not_while_it_is_pulled() -> None:
    """A pull that is under way belongs to the run; detaching says so, and disturbs nothing."""
    runs: list[FusedRun[Any]] = []

    @operator
    def greedy() -> Stage[Any, Any]:
        item = yield
        with pytest.raises(RuntimeError, match="while it is being pulled"):
            runs[0].detach()
        yield item

    runs.append(fuse(Engine([1], every_s=1.0)(), [greedy()]))
    pull = asyncio.create_task(collect(runs[0]))
    await asyncio.sleep(0.5)
    with pytest.raises(RuntimeError, match="while it is being pulled"):
        runs[0].detach()
    assert await pull == Seen([1], "completed")
