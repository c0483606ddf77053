"""What the scheduler of the simulated engine deals in: requests, the cost of steps, load."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from rx_backend.context import RequestContext
from rx_backend.errors import BackendError

__all__ = ("Load", "Sequence", "Timing")


class Timing(Struct, frozen=True, kw_only=True):
    """What a step costs, in milliseconds."""

    step_ms: float
    """Base time of a step."""
    step_ms_per_sequence: float
    """Added for each sequence that decodes in the step."""
    prefill_ms_per_token: float
    """Added for each prompt token that the step works through."""

    def step_s(self, decoding: int, prompt_tokens: int) -> float:
        """Return the length in seconds of a step with this much work in it."""
        extra = self.step_ms_per_sequence * decoding + self.prefill_ms_per_token * prompt_tokens
        return (self.step_ms + extra) / 1000.0


class Load(Struct, frozen=True, kw_only=True):
    """What an engine is busy with at one moment."""

    waiting: int
    """Requests in the queue, outside the batch."""
    prefilling: int
    """Requests in the batch whose prompt is being worked through."""
    decoding: int
    """Requests in the batch that get a token each step."""
    kv_tokens: int
    """KV-cache space reserved by the batch, in tokens."""


class Sequence:
    """
    One request as the scheduler sees it.

    The scheduler writes `made` (tokens so far), `ended`, and `error`; the consumer reads them
    and leaves a future in `waiter` when nothing is there for it.
    """

    __slots__ = (
        "context",
        "ended",
        "error",
        "failure",
        "kv_tokens",
        "leaving",
        "made",
        "patient",
        "prompt_left",
        "target",
        "waiter",
    )

    def __init__(
        self,
        context: RequestContext,
        *,
        prompt_tokens: int,
        max_tokens: int,
        kv_tokens: int,
        patient: bool = False,
    ) -> None:
        """
        Describe a request that is not scheduled yet.

        Args:
            context: Its context; a stop is seen at the end of the step.
            prompt_tokens: Prompt tokens to prefill, 0 when another worker did.
            max_tokens: Tokens until it ends by itself.
            kv_tokens: KV-cache space that it reserves while in the batch.
            patient: A stop waits for the first token (row A4's reason: ending earlier
                orphans the prefill peer's transfer).
        """
        self.context = context
        self.prompt_left = prompt_tokens
        self.kv_tokens = kv_tokens
        self.patient = patient
        self.made = 0
        # The count at which the next step settles the sequence: its end, or its failure.
        self.target = max_tokens
        self.failure: BackendError | None = None
        self.ended = False
        self.error: BackendError | None = None
        self.leaving = False
        self.waiter: asyncio.Future[None] | None = None

    def fail_after(self, tokens: int, error: BackendError) -> None:
        """Make the sequence end with *error* in place of the token after *tokens*."""
        self.target = tokens + 1
        self.failure = error

    def wants_out(self) -> bool:
        """Tell whether the sequence was aborted, closed, or stopped by its client."""
        if self.leaving:
            return True
        return self.context.is_stopped and not (self.patient and self.made == 0)

    def end(self, error: BackendError | None = None) -> None:
        """Close the sequence; its consumer finds what was made, then the end."""
        self.ended = True
        self.error = error
        self.wake()

    def wake(self) -> None:
        """Resume the consumer if it waits."""
        waiter = self.waiter
        if waiter is not None:
            self.waiter = None
            if not waiter.done():
                waiter.set_result(None)
