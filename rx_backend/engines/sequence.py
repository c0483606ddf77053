"""The data of the simulated engine's scheduler: requests, step durations, load."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from msgspec import Struct

from rx_backend.context import RequestContext
from rx_backend.errors import BackendError

__all__ = ("Load", "Sequence", "Timing")


class Timing(Struct, frozen=True, kw_only=True):
    """The duration of a step in ms: a base, per decoding sequence, per prompt token."""

    step_ms: float
    step_ms_per_sequence: float
    prefill_ms_per_token: float

    def step_s(self, decoding: int, prompt_tokens: int) -> float:
        """Return the length in seconds of a step with this much work."""
        extra = self.step_ms_per_sequence * decoding + self.prefill_ms_per_token * prompt_tokens
        return (self.step_ms + extra) / 1000.0


class Load(Struct, frozen=True, kw_only=True):
    """
    An engine's current work.

    Attributes:
        waiting: Requests in the queue, outside the batch.
        prefilling: Requests in the batch whose prompt is being read.
        decoding: Requests in the batch that get a token each step.
        kv_tokens: KV-cache space reserved by the batch, in tokens.
    """

    waiting: int
    prefilling: int
    decoding: int
    kv_tokens: int


@dataclass(slots=True, eq=False)
class Sequence:
    """
    One request in the scheduler.

    The scheduler writes ``output_tokens``, ``ended`` and ``error``; the consumer reads them, and
    waits for a future in ``waiter`` if there is nothing new.

    Attributes:
        context: The request's context; a stop takes effect at the end of the step.
        prompt_left: Prompt tokens still to prefill; 0 if another worker did.
        target: The count of tokens at which the next step ends the sequence, or fails it.
        failure: The error that it fails with instead of generating its last token.
        kv_tokens: KV-cache space that it reserves while in the batch, in tokens.
        patient: Whether a stop waits for the first token, as an earlier end would orphan the
            transfer from the prefill peer (row A4).
        output_tokens: Tokens so far.
        leaving: Whether it was aborted, or its stream was closed.
    """

    context: RequestContext
    prompt_left: int
    target: int
    kv_tokens: int
    patient: bool = False
    output_tokens: int = 0
    failure: BackendError | None = None
    ended: bool = False
    error: BackendError | None = None
    leaving: bool = False
    waiter: asyncio.Future[None] | None = None

    def should_leave(self) -> bool:
        """Return whether the sequence was aborted, closed, or stopped by its client."""
        if self.leaving:
            return True
        return self.context.is_stopped and not (self.patient and self.output_tokens == 0)

    def end(self, error: BackendError | None = None) -> None:
        """End the sequence; its consumer gets the tokens made, then the end."""
        self.ended = True
        self.error = error
        self.wake()

    def wake(self) -> None:
        """Resume the consumer if it waits."""
        waiter, self.waiter = self.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
