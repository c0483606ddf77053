"""`operators.own_copy`, and that what holds chunks beyond their pull holds copies (row E6)."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

import pytest
import reactivex
from reactivex import abc
from reactivex import operators as ops

from operators import coalesce, fuse, stop_on, stop_on_text, tap_async
from operators.authoring import AnyOperator, ObservableSource, own_copy
from rx_backend import Annotated, LLMEngineOutput
from rx_backend.protocols import TopLogprob


def full() -> LLMEngineOutput:
    return LLMEngineOutput(
        [1, 2],
        tokens=["a", "b"],
        text="ab",
        log_probs=[-1.0, -2.0],
        top_logprobs=[[TopLogprob(rank=1, token_id=1, logprob=-0.5)], []],
        content_parts=[{"type": "image", "image": {"url": "x"}}],
        extra_args={"more": 1},
        engine_data=[1],
    )


def spoil(value: Any) -> None:
    """Change whatever list or dict is in a value."""
    if isinstance(value, list):
        for entry in value:  # pyright: ignore[reportUnknownVariableType]
            spoil(entry)
        value.append("spoilt")  # pyright: ignore[reportUnknownMemberType]
    elif isinstance(value, dict):
        for entry in value.values():  # pyright: ignore[reportUnknownVariableType]
            spoil(entry)
        value["spoilt"] = True


FIELDS = LLMEngineOutput.__struct_fields__


@pytest.mark.rows("E6")
def test_the_copy_shares_no_list() -> None:
    """Whatever the engine does to its chunk, or to a list in it, the copy is as it was."""
    chunk = full()
    held = own_copy(chunk)
    assert held == chunk
    for name in FIELDS:
        spoil(getattr(chunk, name))
    chunk.text = "spoilt"
    assert held == full()


@pytest.mark.rows("E6")
@pytest.mark.parametrize(
    "token_ids", [5, None, {}, {1}, iter([1]), (1, 2)], ids=lambda ids: type(ids).__name__
)
def test_token_ids_other_than_lists_are_shared(token_ids: Any) -> None:
    """What is wrong with a chunk is for whoever checks it, also where it was held before."""
    chunk = LLMEngineOutput(token_ids, tokens=["a"])
    held = own_copy(chunk)
    kept: Any = held.token_ids
    assert kept is token_ids
    assert held.tokens == ["a"]
    assert held.tokens is not chunk.tokens


@pytest.mark.rows("E6")
def test_an_annotated_chunk_is_copied_with_its_envelope() -> None:
    """Around a chunk; one without data, or with something else in it, is handed back."""
    item = Annotated(full())
    held = own_copy(item)
    assert item.data is not None
    item.data.token_ids.append(9)
    item.data = None
    assert held == Annotated(full())
    others: list[Annotated[Any]] = [Annotated(event="ping"), Annotated("text")]
    for other in others:
        assert own_copy(other) is other


@pytest.mark.rows("E6")
def test_a_dict_is_copied() -> None:
    """Of a chunk's shape, as Dynamo's engines yield it."""
    chunk: dict[str, Any] = {"token_ids": [1], "top_logprobs": [[{"rank": 1}]], "extra": {"a": 1}}
    before = copy.deepcopy(chunk)
    held = own_copy(chunk)
    spoil(chunk)
    assert held == before


class Fixed(NamedTuple):
    token_ids: list[int]


@dataclass(frozen=True)
class Frozen:
    token_ids: list[int]


@pytest.mark.parametrize("item", [None, 7, "a", {"a": []}, Fixed([1]), Frozen([1])], ids=repr)
def test_frozen_and_unknown_objects_are_returned(item: Any) -> None:
    """It can't be copied, or there is nothing known to copy in it."""
    assert own_copy(item) is item


def test_instance_attributes_are_copied() -> None:
    """A class need not name its fields: what an object was given besides is copied too."""

    class Loose:
        tokens: list[str] | None = None
        extra_args: dict[str, int] | None = None

    held: Any = Loose()
    held.token_ids, held.engine_data = [7], {"a": 1}
    own = own_copy(held)
    held.engine_data["b"] = 2
    assert (own.token_ids, own.engine_data) == ([7], {"a": 1})


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
def test_pushed_chunks_are_copied_when_they_arrive(subscribe: Any) -> None:
    """What waits to be pulled was copied when it was pushed, in the thread that pushes."""

    async def main() -> list[int]:
        source = ObservableSource(reactivex.Observable(subscribe))
        return [chunk.token_ids[0] async for chunk in source]

    assert asyncio.run(main()) == list(range(6))
