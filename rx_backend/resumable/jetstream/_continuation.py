"""What an answer still lacks after the process that wrote it is gone."""

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
    Return the items with which a request ends that no engine has to continue; none if one has to.

    They are the terminals of one that was stopped or lacks nothing else, and the error of one that
    cannot be continued.

    Args:
        state: The progress of the answer.
        left: The answers that have not ended.
        context: The request's context.
        blocker: Why it may not be continued, apart from what *state* says.
    """
    if context.is_stopped:
        return stopped(left)
    terminal = state.missing_terminal()
    if terminal is not None:
        return [Annotated(terminal)]
    reason = blocker or state.blocker()
    if reason is None:
        return []
    error = Disconnected(f"the process that made the answer is gone; not resumed: {reason}")
    return [Annotated.from_error(error)]


async def open_rest(
    adapter: EngineAdapter[Item], state: ResumeState, context: RequestContext
) -> ResponseStream[Item]:
    """
    Return the stream of the rest of an answer, from an engine of this process.

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
    """Return the terminals of answers that were stopped; the first of a request needs no index."""
    cancelled = FinishReason.CANCELLED
    return [
        Annotated(LLMEngineOutput(finish_reason=cancelled, index=answer or None))
        for answer in answers
    ]


def unchanged(item: Item) -> Item:
    """Return an item of an answer that was begun here."""
    return item


def given(*items: Item) -> FusedRun[Item]:
    """Return a stream of items that no engine has to make."""

    async def stream() -> AsyncGenerator[Item]:
        for item in items:
            yield item

    return fuse(stream(), [])
