"""A list of operators over a source, and operators on Observables, have the type of their items."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, assert_type

import reactivex
from reactivex import Observable
from reactivex import operators as ops

from operators import (
    annotate_errors,
    coalesce,
    fuse,
    limit_tokens,
    map_async,
    stop_on,
    until_terminal,
)
from operators.authoring import AnyOperator, FusedRun, Operator, SameTypeOperator
from rx_backend import Annotated, LLMEngineOutput
from tests.typing.writing import as_text, at_most, count_tokens, named, shout


async def length(text: str) -> int:
    return len(text)


async def of_one_type(engine: AsyncGenerator[LLMEngineOutput]) -> None:
    """Operators that hand out what they take leave the source's type."""
    chunks = fuse(engine, [until_terminal(), limit_tokens(3), stop_on(7), coalesce(), at_most(2)])
    assert_type(chunks, FusedRun[LLMEngineOutput])
    async for chunk in chunks:
        assert_type(chunk, LLMEngineOutput)
    assert_type(fuse(engine, [named("x")]), FusedRun[LLMEngineOutput])
    assert_type(fuse(engine, [ops.delay(0.1)]), FusedRun[LLMEngineOutput])


def of_one_operator(
    texts: AsyncIterator[str], items: AsyncIterator[Annotated[LLMEngineOutput]]
) -> None:
    """One operator alone says what comes out."""
    assert_type(fuse(items, [as_text()]), FusedRun[str])
    assert_type(fuse(texts, [map_async(length)]), FusedRun[int])
    assert_type(fuse(texts, (shout(), shout())), FusedRun[str])


def of_anything(texts: AsyncIterator[str], operators: list[AnyOperator]) -> None:
    """Of a list whose types are not known, nothing is known."""
    assert_type(fuse(texts, operators), FusedRun[Any])


def of_observables(chunks: Observable[LLMEngineOutput]) -> None:
    """In `pipe` an operator of ours has types like one of reactivex."""
    assert_type(chunks.pipe(until_terminal(), limit_tokens(3)), Observable[LLMEngineOutput])
    made: Operator[LLMEngineOutput, Annotated[LLMEngineOutput]]
    made = annotate_errors(Annotated, Annotated.from_error)
    items = chunks.pipe(limit_tokens(3), made)
    assert_type(items.pipe(count_tokens(print), as_text(), shout()), Observable[str])
    assert_type(reactivex.of("a").pipe(map_async(length), ops.to_list()), Observable[list[int]])


def of_operators() -> None:
    """Each has the types that its arguments say."""
    assert_type(map_async(length), Operator[str, int])
    assert_type(limit_tokens(3), SameTypeOperator)
