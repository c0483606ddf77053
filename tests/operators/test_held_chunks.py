"""What holds an engine's chunks beyond their pull holds copies of its own (row E6)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from importlib.util import find_spec
from typing import Any

import pytest
import reactivex
from reactivex import abc
from reactivex import operators as ops

from operators import coalesce, fuse, stop_on, stop_on_text, tap_async
from operators.authoring import AnyOperator, ObservableSource
from rx_backend import LLMEngineOutput
from tests.operators._help import virtual


def flatten(items: Any) -> Any:
    return reactivex.from_iterable(items)


async def ignore(_: object) -> None:
    await asyncio.sleep(0)


HOLDING: dict[str, Callable[[], Sequence[AnyOperator]]] = {
    "nothing": list,
    "coalesce": lambda: [coalesce()],
    "stop_on": lambda: [stop_on([[n, 99] for n in range(6)])],
    "stop_on_text": lambda: [stop_on_text([f"{n}#" for n in range(6)])],
    "tap_async": lambda: [tap_async(ignore)],
    "buffer_with_count": lambda: [ops.buffer_with_count(3), ops.flat_map(flatten)],
    "buffer_with_time": lambda: [ops.buffer_with_time(2.5), ops.flat_map(flatten)],
    "pairwise": lambda: [ops.start_with(LLMEngineOutput([-1])), ops.pairwise(), ops.map(last)],
    "delay": lambda: [ops.delay(5.0)],
}
if find_spec("aioreactive") is not None:
    import aioreactive

    HOLDING["aioreactive.delay"] = lambda: [aioreactive.delay(5.0)]


def last(pair: tuple[Any, Any]) -> Any:
    return pair[1]


async def reusing() -> AsyncGenerator[LLMEngineOutput]:
    """Give one chunk again and again, with other tokens."""
    chunk = LLMEngineOutput([0])
    for n in range(6):
        chunk.token_ids[0], chunk.text = n, str(n)
        yield chunk
        await asyncio.sleep(1.0)


@pytest.mark.rows("E6")
@pytest.mark.parametrize("holding", HOLDING)
@virtual
async def test_an_engine_that_reuses_its_chunk(holding: str) -> None:
    """A client that lags sees each token once, whatever stands between."""
    tokens: list[int] = []
    async for chunk in fuse(reusing(), HOLDING[holding]()):
        tokens += chunk.token_ids
        await asyncio.sleep(2.0)
    assert tokens == list(range(6))


def pushed(observer: abc.ObserverBase[Any], _: object = None) -> None:
    ids = [0]
    for n in range(6):
        ids[0] = n
        observer.on_next(LLMEngineOutput(ids))
    observer.on_completed()


def pushed_in_a_thread(observer: abc.ObserverBase[Any], _: object = None) -> None:
    threading.Thread(target=pushed, args=(observer,)).start()


@pytest.mark.rows("E2", "E6")
@pytest.mark.parametrize("subscribe", [pushed, pushed_in_a_thread])
def test_an_observable_that_pushes_ahead(subscribe: Any) -> None:
    """What waits to be pulled was copied when it was pushed, in the thread that pushes."""

    async def main() -> list[int]:
        source = ObservableSource(reactivex.Observable(subscribe))
        return [chunk.token_ids[0] async for chunk in source]

    assert asyncio.run(main()) == list(range(6))
