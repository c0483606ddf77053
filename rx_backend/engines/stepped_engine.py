"""The base of engines whose model runs in this process, in a step thread."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from typing import Any, ClassVar, NamedTuple

from rx_backend.context import RequestContext
from rx_backend.engine import LLMEngine
from rx_backend.engines.request_checks import (
    check_options,
    check_prompt,
    output_tokens,
    stop_token_ids,
)
from rx_backend.engines.step_thread import StepThread
from rx_backend.errors import EngineShutdown
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest

__all__ = ("CheckedRequest", "Limits", "SteppedEngine")


class Limits(NamedTuple):
    """A model's limits: context in tokens, number of token ids, and the ids that end its text."""

    context_length: int
    vocab_size: int
    end_ids: frozenset[int]


class CheckedRequest(NamedTuple):
    """The checked request: its prompt, maximum of tokens, and the ids that end the answer."""

    prompt: list[int]
    limit: int
    stop: frozenset[int]


class SteppedEngine(LLMEngine):
    """
    Checks requests, and streams them from a :class:`StepThread`, which ``start`` creates.

    Attributes:
        honours: The options of a request that the scheduler honours, in the form for
            `check_options`.
    """

    needs_tokenizer = True
    honours: ClassVar[Collection[str]]

    def __init__(self) -> None:
        self._steps: StepThread | None = None
        self._limits = Limits(0, 0, frozenset())

    def check(self, request: PreprocessedRequest) -> CheckedRequest:
        """
        Return the checked *request*.

        Raises:
            InvalidArgument: The prompt is empty, too long or has ids out of range, or an option can't
                be honoured; the message names it.
            EngineShutdown: The engine was not started.
        """
        self._running()
        length, vocab_size, end_ids = self._limits
        check_options(type(self).__name__, request, self.honours)
        prompt = check_prompt(request, context_length=length, vocab_size=vocab_size)
        stop = stop_token_ids(request, end_ids)
        known = frozenset(token_id for token_id in stop if 0 <= token_id < vocab_size)
        return CheckedRequest(prompt, output_tokens(request, length), known)

    def stream(
        self, request: PreprocessedRequest, context: RequestContext, answer: Any
    ) -> AsyncGenerator[LLMEngineOutput]:
        """
        Stream *answer*, the scheduler's state for the request; it is queued at the first pull.

        Raises:
            Disconnected: The step thread has ended by itself (row E7).
            EngineShutdown: The engine was not started, or was cleaned up.
        """
        return self._running().stream(request, context, state=answer)

    async def lost(self) -> str:
        """Wait until the step thread has ended by itself; return why (row E7)."""
        return await self._running().lost()

    async def drain(self) -> None:
        """Wait until nothing is queued or running."""
        if self._steps is not None:
            await self._steps.drain()

    async def cleanup(self) -> None:
        """End open streams with `EngineShutdown`, and the step thread (row E5)."""
        if self._steps is not None:
            await self._steps.close()

    async def health_check_payload(self) -> dict[str, Any] | None:
        """Return a one-token request."""
        return {"token_ids": [1], "stop_conditions": {"max_tokens": 1}}

    def _running(self) -> StepThread:
        if self._steps is None:
            raise EngineShutdown("the engine is not running")
        return self._steps
