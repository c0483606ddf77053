"""The rest of an answer after the process that wrote it is gone."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable

from operators import fuse
from operators.authoring import FusedRun
from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.errors import Disconnected
from rx_backend.protocols import Annotated, FinishReason, LLMEngineOutput
from rx_backend.resumable.jetstream._entries import Item
from rx_backend.resumption import ResumeState, continuation_request
from rx_backend.stream import ResponseStream

__all__ = ("given", "last_items", "open_rest", "rebased", "stopped", "unchanged")


def last_items(
    state: ResumeState, left: list[int], context: RequestContext, blocker: str | None
) -> list[Item]:
    """
    Return the last items of a request that no engine needs to continue; none if one does.

    They are the terminals if it was stopped or if only they are missing, or the error if it can't
    be continued.

    Args:
        state: The progress of the answer.
        left: The answers that have not ended.
        context: The request's context.
        blocker: Why it may not be continued, in addition to the reasons in *state*.
    """
    if context.is_stopped:
        return stopped(left)
    terminal = state.missing_terminal()
    if terminal is not None:
        return [Annotated(terminal)]
    reason = blocker or state.blocker()
    if reason is None:
        return []
    error = Disconnected(f"the process that wrote the answer is gone; not resumed: {reason}")
    return [Annotated.from_error(error)]


async def open_rest(
    adapter: EngineAdapter[Item], state: ResumeState, context: RequestContext
) -> ResponseStream[Item]:
    """
    Return the stream of the rest of an answer, from this process's engine.

    Raises:
        BackendError: The engine's set-up failed (row S5).
    """
    part = continuation_request(state.request, state.token_ids.tolist(), state.link)
    stream = await adapter.generate(part, context)
    state.begin_part()
    return stream


def rebased(state: ResumeState, item: Item) -> Item:
    """Return an item of the rest with figures that cover the whole answer."""
    if item.data is not None:
        item.data = state.add(item.data)
    return item


def stopped(answers: Iterable[int]) -> list[Item]:
    """Return the terminals of stopped answers; the first answer of a request needs no index."""
    cancelled = FinishReason.CANCELLED
    return [
        Annotated(LLMEngineOutput(finish_reason=cancelled, index=answer or None))
        for answer in answers
    ]


def unchanged(item: Item) -> Item:
    """Return an item of an answer that was started here."""
    return item


def given(*items: Item) -> FusedRun[Item]:
    """Return a stream of the given items, without an engine."""

    async def stream() -> AsyncGenerator[Item]:
        for item in items:
            yield item

    return fuse(stream(), [])
