"""What type checkers refuse; an `ignore` without need is an error in both of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from operators import Pipeline, fuse, limit_tokens, map_async
from operators.authoring import FusedRun, Stage, operator
from rx_backend import (
    Annotated,
    EngineAdapter,
    LLMEngine,
    LLMEngineOutput,
    PreprocessedRequest,
    standard_pipeline,
)
from tests.typing.writing import as_text, shout


def arguments(engine: LLMEngine) -> None:
    """Operators are called with what their functions take."""
    limit_tokens("3")  # type: ignore[arg-type]
    limit_tokens(limit_=3)  # type: ignore[call-arg]
    shout("loud")  # type: ignore[call-arg]
    map_async(5)  # type: ignore[arg-type]
    EngineAdapter(engine, pipeline=[limit_tokens(3)])  # type: ignore[arg-type]
    Pipeline([5])  # type: ignore[list-item]
    standard_pipeline.insert_before("trace_link", 5)  # type: ignore[call-overload]
    EngineAdapter(engine).with_operators(5)  # type: ignore[call-overload]


async def items(engine: LLMEngine, request: PreprocessedRequest) -> None:
    """Refuse the items of a pipeline as chunks."""
    async for text in await EngineAdapter(engine).with_operators(as_text()).generate(request):
        print(text.data)  # type: ignore[attr-defined]


def sources(numbers: AsyncIterator[int]) -> FusedRun[str]:
    """Refuse items that the operators of a stream do not hand out."""
    stream = fuse(numbers, [limit_tokens(3)])
    return stream  # type: ignore[return-value]


@operator
def not_text() -> Stage[Any, str]:
    """Hand out what is no text."""
    yield None
    return 5  # type: ignore[return-value]


def bodies() -> None:
    """Refuse a coroutine function as a body."""

    @operator  # type: ignore[arg-type]
    async def coroutine(item: Annotated[LLMEngineOutput]) -> Annotated[LLMEngineOutput]:
        return item
