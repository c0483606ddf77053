"""An operator has the types that its body says."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any, assert_type

from operators.authoring import (
    SCOPE,
    FusedRun,
    Operator,
    SameTypeOperator,
    Stage,
    TextTail,
    emit,
    hold_back,
    operator,
    same_type,
)
from rx_backend import Annotated, LLMEngineOutput
from rx_backend.scope import RequestScope


@operator
def count_tokens(
    report: Callable[[int], object],
) -> Stage[Annotated[LLMEngineOutput], Annotated[LLMEngineOutput]]:
    """Report how many tokens the client was given."""
    total = 0
    try:
        item = yield
        while True:
            total += len(item.data.token_ids) if item.data else 0
            item = yield item
    finally:
        report(total)


@operator(takes="chunks")
def named(suffix: str, *, scope: RequestScope = SCOPE) -> Stage[LLMEngineOutput, LLMEngineOutput]:
    """Name the request in each chunk."""
    chunk = yield
    while True:
        chunk.text = scope.request.model + suffix
        chunk = yield chunk


@operator(takes="chunks")
def without_blanks(*, scope: RequestScope = SCOPE) -> Stage[LLMEngineOutput, LLMEngineOutput]:
    """End an answer at a blank: a request's scope is one of a stream."""

    def step(tail: TextTail) -> Iterable[LLMEngineOutput]:
        place = tail.text.find(" ")
        return tail.rest() if place < 0 else tail.end(place)

    return (yield from hold_back(step, scope=scope))


@operator
def as_text() -> Stage[Annotated[LLMEngineOutput], str]:
    """Hand out the text alone."""
    item = yield
    while True:
        text = item.data.text if item.data else None
        item = yield emit() if text is None else text


@operator
async def shout(source: FusedRun[str]) -> AsyncGenerator[str]:
    """Hand out text in capitals."""
    async for text in source:
        yield text.upper()


@same_type
@operator
def at_most(count: int) -> Stage[Any, Any]:
    """End the stream after *count* items of any type."""
    for _ in range(count):
        yield (yield)
    return None


def made() -> None:
    """Arguments are those of the function, without its source."""
    assert_type(as_text(), Operator[Annotated[LLMEngineOutput], str])
    assert_type(shout(), Operator[str, str])
    assert_type(named("x"), Operator[LLMEngineOutput, LLMEngineOutput])
    assert_type(at_most(3), SameTypeOperator)
