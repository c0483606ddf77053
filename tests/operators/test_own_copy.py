"""`operators.own_copy`: what is held can't be changed by the engine any more."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from operators.authoring import own_copy
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
def test_no_list_is_shared() -> None:
    """Whatever the engine does to its chunk, or to a list in it, the copy is as it was."""
    chunk = full()
    held = own_copy(chunk)
    assert held == chunk
    for name in FIELDS:
        spoil(getattr(chunk, name))
    chunk.text = "spoilt"
    assert held == full()


@pytest.mark.rows("E6")
def test_an_envelope_and_its_chunk_are_copied() -> None:
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
def test_what_is_frozen_or_unknown_is_handed_back(item: Any) -> None:
    """It can't be copied, or there is nothing known to copy in it."""
    assert own_copy(item) is item


def test_a_chunk_is_known_by_shape() -> None:
    """Any class with token ids will do."""
    chunk = SimpleNamespace(token_ids=[1], text="a")
    held = own_copy(chunk)
    chunk.token_ids.append(2)
    assert held.token_ids == [1]
