"""An engine that generates made-up tokens with realistic timing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from typing import Any

from rx_backend.checks import fraction, integer, number, text
from rx_backend.context import RequestContext
from rx_backend.disagg import DisaggregationMode
from rx_backend.engine import EngineConfig, LLMEngine
from rx_backend.engines.handoff import hand_off, take_over
from rx_backend.engines.request_checks import check_one_answer, max_tokens
from rx_backend.engines.scheduler import Scheduler
from rx_backend.engines.sequence import Load, Sequence, Timing
from rx_backend.errors import (
    Disconnected,
    EngineShutdown,
    InvalidArgument,
    ResponseTimeout,
    StreamIncomplete,
    Unknown,
)
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest, usage

__all__ = ("SimulatedEngine",)

_KIND = "simulated"
_KV_BLOCK = 16
_FAILURES = (Disconnected, ResponseTimeout, StreamIncomplete, Unknown)


class SimulatedEngine(LLMEngine):
    """
    Continuous batching with a timing model: TTFT and ITL react to load as a server's do.

    The engine works in steps. A step gives one token to each decoding sequence, and reads at most
    `prefill_chunk_tokens` of the waiting prompts, oldest first. It lasts::

        step_ms + step_ms_per_sequence * decoding + prefill_ms_per_token * prompt tokens

    A request queues while the batch is full, or while the KV cache has no room for its prompt and
    output. Stops, aborts and dropped streams take effect at the end of a step: the stream ends with
    `cancelled`, and the slot is free for the next step. In decode mode a stop takes effect after
    the first token, and nothing is prefilled; in prefill mode the only chunk is the terminal.

    Tokens, timing and failures depend only on the parameters, the seed and the order of arrival.
    The engine uses asyncio's clock, so it also runs in virtual time.

    Args:
        model: Model name to announce.
        mode: Role of the worker.
        max_batch: Maximum of requests that run together; others queue.
        step_ms: Base time of a step, in ms.
        step_ms_per_sequence: Added per sequence that decodes in the step, in ms.
        prefill_ms_per_token: Added per prompt token of the step, in ms.
        prefill_chunk_tokens: Maximum of prompt tokens in a step. With a low maximum, long prompts
            slow down decoding less, but take longer themselves.
        kv_tokens: KV-cache size in tokens, None for no limit. A request reserves its prompt and its
            `max_tokens` while it runs.
        default_max_tokens: Tokens for a request without `stop_conditions.max_tokens`.
        vocab_size: Token ids count up from 0 to below this, and start over.
        error_rate: Share of the requests, 0 to 1, that fail with a typed error.
        seed: Determines which requests fail, when and how.

    Raises:
        InvalidArgument: A parameter is out of its range; the message names it.
    """

    def __init__(
        self,
        *,
        model: str = "simulated",
        mode: DisaggregationMode | str = DisaggregationMode.AGGREGATED,
        max_batch: int = 128,
        step_ms: float = 15.0,
        step_ms_per_sequence: float = 0.1,
        prefill_ms_per_token: float = 0.05,
        prefill_chunk_tokens: int = 2048,
        kv_tokens: int | None = None,
        default_max_tokens: int = 128,
        vocab_size: int = 32_000,
        error_rate: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._model = text("model", model)
        self._mode = DisaggregationMode.parse(mode)
        self._max_batch = integer("max_batch", max_batch, low=1, unit="requests")
        self._chunk = integer("prefill_chunk_tokens", prefill_chunk_tokens, low=1, unit="tokens")
        if kv_tokens is not None:
            kv_tokens = integer("kv_tokens", kv_tokens, low=1, unit="tokens")
        self._kv_tokens = kv_tokens
        self._default = integer("default_max_tokens", default_max_tokens, low=1, unit="tokens")
        self._vocab_size = integer("vocab_size", vocab_size, low=1)
        self._error_rate = fraction("error_rate", error_rate)
        self._random = random.Random(integer("seed", seed))  # noqa: S311  # a simulation, no secret
        timing = Timing(
            step_ms=number("step_ms", step_ms, low=0, unit="ms"),
            step_ms_per_sequence=number(
                "step_ms_per_sequence", step_ms_per_sequence, low=0, unit="ms"
            ),
            prefill_ms_per_token=number(
                "prefill_ms_per_token", prefill_ms_per_token, low=0, unit="ms"
            ),
        )
        self._scheduler = Scheduler(
            timing,
            max_batch=self._max_batch,
            prefill_chunk_tokens=self._chunk,
            kv_tokens=kv_tokens,
        )
        self._shut = False

    @property
    def load(self) -> Load:
        """The work that is queued and running."""
        return self._scheduler.load

    async def start(self, worker_id: int) -> EngineConfig:
        """Announce the model and the limits; there is nothing to load."""
        self._shut = False
        limited = self._kv_tokens is not None
        return EngineConfig(
            model=self._model,
            max_num_seqs=self._max_batch,
            max_num_batched_tokens=self._chunk,
            kv_cache_block_size=_KV_BLOCK if limited else None,
            total_kv_blocks=(self._kv_tokens or 0) // _KV_BLOCK if limited else None,
        )

    def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        """
        Stream the tokens of *request*, which is queued when it is first pulled.

        Raises:
            InvalidArgument: `stop_conditions.max_tokens` is below 1, `sampling_options.n` is above
                1, the request is larger than the KV cache, or decode mode's hand-off is invalid.
            EngineShutdown: The engine was cleaned up.
        """
        if self._shut:
            raise _shut_down()
        check_one_answer(request)
        wanted = max_tokens(request, self._default)
        if self._mode.is_prefill:
            wanted = 1
        prompt = len(request.token_ids)
        if self._kv_tokens is not None and prompt + wanted > self._kv_tokens:
            raise InvalidArgument(
                f"token_ids: {prompt} prompt tokens and max_tokens {wanted} do not fit into "
                f"kv_tokens {self._kv_tokens}"
            )
        decodes = self._mode.is_decode
        if decodes:
            take_over(_KIND, request)
        sequence = Sequence(
            context,
            prompt_left=0 if decodes else prompt,
            target=wanted,
            kv_tokens=prompt + wanted,
            patient=decodes,
        )
        return self._stream(sequence, request, wanted)

    async def abort(self, context: RequestContext) -> None:
        """End the stream of *context* with `cancelled` at the end of the step (row E5)."""
        self._scheduler.abort(context)

    async def cleanup(self) -> None:
        """End the scheduler, and open streams with `EngineShutdown` (row E5)."""
        self._shut = True
        await self._scheduler.shut(_shut_down)

    async def is_quiescent(self) -> bool:
        """Return whether nothing is queued or running."""
        return self._scheduler.idle

    async def drain(self) -> None:
        """Wait until nothing is queued or running."""
        await self._scheduler.drained()

    async def health_check_payload(self) -> dict[str, Any] | None:
        """Return a one-token request; None in decode mode, which needs a hand-off."""
        if self._mode.is_decode:
            return None
        return {"token_ids": [1], "stop_conditions": {"max_tokens": 1}}

    async def _stream(
        self, sequence: Sequence, request: PreprocessedRequest, wanted: int
    ) -> AsyncGenerator[LLMEngineOutput]:
        if self._shut:
            raise _shut_down()
        new_future = asyncio.get_running_loop().create_future
        vocab_size = self._vocab_size
        self._draw_failure(sequence, wanted)
        self._scheduler.submit(sequence)
        taken = 0
        before_last = wanted - 1
        try:
            while True:
                while taken < sequence.output_tokens and taken < before_last:
                    yield LLMEngineOutput([taken % vocab_size])
                    taken += 1
                if taken < sequence.output_tokens or sequence.ended:
                    break
                waiter = sequence.waiter = new_future()
                await waiter
            if sequence.error is not None:
                raise sequence.error
            yield self._terminal(sequence, request, wanted)
        finally:
            # A dropped stream frees its slot.
            sequence.leaving = True

    def _terminal(
        self, sequence: Sequence, request: PreprocessedRequest, wanted: int
    ) -> LLMEngineOutput:
        prompt = len(request.token_ids)
        if sequence.output_tokens < wanted:
            return LLMEngineOutput.cancelled().with_usage(usage(prompt, sequence.output_tokens))
        last = LLMEngineOutput.length().with_tokens([(wanted - 1) % self._vocab_size])
        if self._mode.is_prefill:
            last.disaggregated_params = hand_off(_KIND, request, sequence.context.id)
        return last.with_usage(usage(prompt, wanted))

    def _draw_failure(self, sequence: Sequence, wanted: int) -> None:
        draw = self._random
        if not self._error_rate or draw.random() >= self._error_rate:
            return
        after = draw.randrange(wanted)
        sequence.target = after + 1
        sequence.failure = draw.choice(_FAILURES)(f"simulated failure after {after} tokens")


def _shut_down() -> EngineShutdown:
    return EngineShutdown("the engine was cleaned up")
