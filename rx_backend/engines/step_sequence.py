"""A scheduler of a step thread, and one request in its batch."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

from operators.authoring import has_content
from rx_backend.context import RequestContext
from rx_backend.engines.chunk_queue import ChunkQueue
from rx_backend.protocols import FinishReason, LLMEngineOutput, PreprocessedRequest, usage

__all__ = ("Outgoing", "StepScheduler", "StepSequence")

Outgoing: TypeAlias = list[LLMEngineOutput | BaseException]
"""The items sent in a step: chunks, and perhaps an error as the last one."""


class StepSequence:
    """
    One request in the batch of a :class:`StepThread`; used in that thread only.

    Attributes:
        request: The request.
        context: Its context.
        state: The scheduler's own data; at first the argument of `StepThread.stream`.
        output_tokens: Tokens emitted so far; a chunk with text or other parts instead of token ids
            counts as one.
    """

    __slots__ = ("_outgoing", "context", "is_over", "output_tokens", "queue", "request", "state")

    def __init__(
        self, request: PreprocessedRequest, context: RequestContext, queue: ChunkQueue, state: Any
    ) -> None:
        self.request = request
        self.context = context
        self.queue = queue
        self.state = state
        self.output_tokens = 0
        self.is_over = False
        self._outgoing: Outgoing = []

    def emit(self, chunk: LLMEngineOutput) -> None:
        """Send a chunk; one with a finish reason gets the usage and ends the sequence."""
        if self.is_over:
            raise RuntimeError("emit after the end of the sequence")
        self.output_tokens += len(chunk.token_ids) or has_content(chunk)
        if chunk.finish_reason is not None:
            if chunk.completion_usage is None:
                chunk.completion_usage = usage(len(self.request.token_ids), self.output_tokens)
            self.is_over = True
        self._outgoing.append(chunk)

    def emit_token(self, token_id: int, finish_reason: FinishReason | None = None) -> None:
        """Send one token, and the end if there is a reason."""
        self.emit(LLMEngineOutput([token_id], finish_reason=finish_reason))

    def fail(self, error: BaseException) -> None:
        """End the sequence with an error, after what was sent."""
        if not self.is_over:
            self._outgoing.append(error)
            self.is_over = True

    @property
    def is_cancelled(self) -> bool:
        """Whether the request was stopped or dropped (rows A4, E4)."""
        stopped = self.context.is_stopped and not (
            self.context.defers_abort and not self.output_tokens
        )
        return stopped or self.queue.is_abandoned

    def take_outgoing(self) -> Outgoing:
        """Return what was emitted since the last call, and count it as sent."""
        outgoing, self._outgoing = self._outgoing, []
        self.queue.sent += len(outgoing)
        return outgoing


class StepScheduler(Protocol):
    """
    The work of an engine in the thread of a :class:`StepThread`.

    If ``admit`` or ``step`` raises `Disconnected`, for example because a process of the engine has
    died, the thread ends and the engine is lost (row E7). So it does if eight steps in a row raise
    anything else.
    """

    def admit(self, sequence: StepSequence) -> None:
        """Make room for a sequence that joins the batch; other errors end only that sequence."""
        ...

    def step(self, sequences: list[StepSequence]) -> None:
        """
        Run one step for these sequences, and emit the results.

        Sequences whose consumers lag are left out. Other errors end all sequences of the step.
        """
        ...

    def release(self, sequence: StepSequence) -> None:
        """Free what an admitted sequence holds: it is over, or its consumer has exited."""
        ...
