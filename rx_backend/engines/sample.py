"""The smallest complete engine: made-up tokens at a fixed pace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from rx_backend.checks import integer, number, text
from rx_backend.context import RequestContext
from rx_backend.disagg import DisaggregationMode
from rx_backend.engine import EngineConfig, LLMEngine
from rx_backend.engines.handoff import hand_off, take_over
from rx_backend.engines.request_checks import check_one_answer, max_tokens
from rx_backend.errors import EngineShutdown
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest, usage

__all__ = ("SampleEngine",)

_KIND = "sample"


class SampleEngine(LLMEngine):
    """
    Yield token ids 0, 1, 2, ..., one per chunk and interval, starting over at *vocab_size*.

    The last token's chunk is the terminal: `length`, with the usage. A stop wakes the stream at
    once and ends it with `cancelled` and the usage so far (row E4). In prefill mode the only chunk
    is the terminal, with the first token and the hand-off. In decode mode the hand-off is checked,
    a stop takes effect after the first token, as an earlier end would orphan the prefill peer's
    transfer, and the tokens are those of an aggregated run.

    Args:
        model: Model name to announce.
        mode: Role of the worker.
        token_interval_ms: Time before each token, in ms; 0 for one per turn of the event loop.
        default_max_tokens: Tokens for a request without `stop_conditions.max_tokens`.
        vocab_size: Token ids are below this.

    Raises:
        InvalidArgument: A parameter is out of its range; the message names it.
    """

    def __init__(
        self,
        *,
        model: str = "sample",
        mode: DisaggregationMode | str = DisaggregationMode.AGGREGATED,
        token_interval_ms: float = 10.0,
        default_max_tokens: int = 16,
        vocab_size: int = 32_000,
    ) -> None:
        self._model = text("model", model)
        self._mode = DisaggregationMode.parse(mode)
        self._interval_s = number("token_interval_ms", token_interval_ms, low=0, unit="ms") / 1000
        self._default = integer("default_max_tokens", default_max_tokens, low=1, unit="tokens")
        self._vocab_size = integer("vocab_size", vocab_size, low=1)
        self._live = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._shut = False

    async def start(self, worker_id: int) -> EngineConfig:
        """Announce the model; there is nothing to load."""
        self._shut = False
        return EngineConfig(model=self._model)

    def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        """
        Stream the tokens of *request*.

        Raises:
            InvalidArgument: `stop_conditions.max_tokens` is below 1, `sampling_options.n` is above
                1, or decode mode's hand-off is invalid.
            EngineShutdown: The engine was cleaned up.
        """
        if self._shut:
            raise EngineShutdown("the engine was cleaned up")
        check_one_answer(request)
        wanted = max_tokens(request, self._default)
        if self._mode.is_decode:
            take_over(_KIND, request)
        return self._stream(request, context, 1 if self._mode.is_prefill else wanted)

    async def cleanup(self) -> None:
        """End open streams with `EngineShutdown` at their next token (row E5)."""
        self._shut = True

    async def is_quiescent(self) -> bool:
        """Return whether no stream is open."""
        return self._live == 0

    async def drain(self) -> None:
        """Wait until no stream is open."""
        await self._idle.wait()

    async def health_check_payload(self) -> dict[str, Any] | None:
        """Return a one-token request; None in decode mode, which needs a hand-off."""
        if self._mode.is_decode:
            return None
        return {"token_ids": [1], "stop_conditions": {"max_tokens": 1}}

    async def _stream(
        self, request: PreprocessedRequest, context: RequestContext, wanted: int
    ) -> AsyncGenerator[LLMEngineOutput]:
        prompt = len(request.token_ids)
        patient = self._mode.is_decode
        due = asyncio.get_running_loop().time()
        self._live += 1
        self._idle.clear()
        try:
            for made in range(wanted):
                due += self._interval_s
                if made == 0 and patient:
                    await asyncio.sleep(self._interval_s)
                else:
                    with suppress(TimeoutError):
                        async with asyncio.timeout_at(due):
                            await context.stopped()
                if self._shut:
                    raise EngineShutdown("the engine was cleaned up")
                if context.is_stopped and not (made == 0 and patient):
                    yield LLMEngineOutput.cancelled().with_usage(usage(prompt, made))
                    return
                ids = [made % self._vocab_size]
                if made + 1 < wanted:
                    yield LLMEngineOutput(ids)
                else:
                    last = LLMEngineOutput.length().with_tokens(ids)
                    if self._mode.is_prefill:
                        last.disaggregated_params = hand_off(_KIND, request, context.id)
                    yield last.with_usage(usage(prompt, wanted))
        finally:
            self._live -= 1
            if not self._live:
                self._idle.set()
