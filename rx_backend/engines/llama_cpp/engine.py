"""An engine on llama.cpp: GGUF models on a CPU, with continuous batching."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rx_backend.checks import integer
from rx_backend.context import RequestContext
from rx_backend.engine import EngineConfig
from rx_backend.engines.llama_cpp.library import check_installed
from rx_backend.engines.step_thread import StepThread
from rx_backend.engines.stepped_engine import Limits, SteppedEngine
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest

if TYPE_CHECKING:
    # They need numpy; this module can be imported without.
    from rx_backend.engines.llama_cpp.native import Cache, Model
    from rx_backend.engines.llama_cpp.scheduler import Answer, LlamaCppScheduler

__all__ = ("LlamaCppEngine",)

_CONTEXT_LENGTH: Final = 4096


class LlamaCppEngine(SteppedEngine):
    """
    Continuous batching with llama.cpp in this process; needs the extra ``engine-llama-cpp``.

    Each step, in a separate thread, computes one batch: a token of every decoding sequence, and a
    part of the waiting prompts. A request queues while `max_batch` others run. A stopped or dropped
    request leaves the batch, and its KV cache is freed, after the current step.

    Options that a request leaves unset come from the model's file (``general.sampling.*``). Their
    defaults are temperature 1, and no `top_k`, `top_p`, `min_p` or penalties. Log probabilities are
    the model's own, before penalties, temperature and limits. Frequency and presence penalties
    count the answer's tokens, the repetition penalty also the prompt's.

    Args:
        model_path: A GGUF file.
        served_model_name: The name to serve it under; by default the file's name without its
            suffix.
        context_length: Maximum of prompt and answer together, in tokens; by default the model's
            training context, but at most 4096. Memory for `max_batch` times as much is allocated at
            the start.
        max_batch: Maximum of requests that run together.
        batch_tokens: Maximum of tokens in a step. With a low maximum, long prompts slow down
            decoding less, but take longer themselves.
        threads: The number of compute threads. On shared cores more than one may be far slower: the
            threads busy-wait for each other.
        gpu_layers: How many layers to put on a GPU, if xllamacpp was built for one; -1 for all.

    Raises:
        ImportError: The extra's packages are not installed.
        InvalidArgument: A parameter is out of its range.
    """

    honours = frozenset(
        {
            "stop_conditions.min_tokens",
            "sampling_options.temperature",
            "sampling_options.top_k",
            "sampling_options.top_p",
            "sampling_options.min_p",
            "sampling_options.seed",
            "sampling_options.repetition_penalty",
            "sampling_options.frequency_penalty",
            "sampling_options.presence_penalty",
            "output_options.logprobs",
        }
    )

    def __init__(
        self,
        model_path: str | Path,
        *,
        served_model_name: str | None = None,
        context_length: int | None = None,
        max_batch: int = 8,
        batch_tokens: int = 256,
        threads: int = 1,
        gpu_layers: int = 0,
    ) -> None:
        super().__init__()
        check_installed()
        self._path = Path(model_path)
        self._name = served_model_name or self._path.stem
        if context_length is not None:
            context_length = integer("context_length", context_length, low=2, unit="tokens")
        self._context_length = context_length
        self._max_batch = integer("max_batch", max_batch, low=1, unit="requests")
        self._batch_tokens = integer("batch_tokens", batch_tokens, low=max_batch + 1, unit="tokens")
        self._threads = integer("threads", threads, low=1)
        self._gpu_layers = integer("gpu_layers", gpu_layers, low=-1, unit="layers")
        self._loading: asyncio.Future[None] | None = None
        self._model: Model | None = None
        self._cache: Cache | None = None
        self._scheduler: LlamaCppScheduler | None = None

    async def start(self, worker_id: int) -> EngineConfig:
        """
        Load the model, in a thread, and start the step thread.

        Raises:
            ImportError: xllamacpp has another version.
            InvalidArgument: llama.cpp can't load the file, or has no memory for the KV cache.
        """
        self._loading = asyncio.ensure_future(asyncio.to_thread(self._load))
        await asyncio.shield(self._loading)
        assert self._scheduler is not None  # noqa: S101  # loaded
        self._steps = StepThread(self._scheduler, max_sequences=self._max_batch)
        return EngineConfig(
            model=self._name,
            context_length=self._limits.context_length,
            max_num_seqs=self._max_batch,
            max_num_batched_tokens=self._batch_tokens,
        )

    def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        """
        Stream the tokens of *request*, which is queued when it is first pulled.

        Raises:
            InvalidArgument: The prompt is empty, too long or has ids out of range, or an option can't
                be honoured; the message names it.
            EngineShutdown: The engine was not started, or was cleaned up.
        """
        return self.stream(request, context, self.answer_to(request))

    def answer_to(self, request: PreprocessedRequest) -> Answer:
        """
        Check *request* and return what to generate for it, for :meth:`stream`.

        Its `received` and `kept` move KV caches from one engine to another.

        Raises:
            InvalidArgument: As in :meth:`generate`.
        """
        from rx_backend.engines.llama_cpp.scheduler import Answer  # noqa: PLC0415  # needs numpy

        return Answer(*self.check(request))

    async def cleanup(self) -> None:
        """End open streams with `EngineShutdown`, and free the model (row E5)."""
        if self._loading is not None:
            # A thread can't be cancelled, and what it loads must be freed.
            await asyncio.wait([self._loading])
        await super().cleanup()
        cache, self._cache = self._cache, None
        model, self._model = self._model, None
        for each in (cache, model):
            if each is not None:
                each.free()

    def _load(self) -> None:
        from rx_backend.engines.llama_cpp.native import Cache, Model  # noqa: PLC0415  # need numpy
        from rx_backend.engines.llama_cpp.scheduler import LlamaCppScheduler  # noqa: PLC0415

        model = self._model = Model(self._path, gpu_layers=self._gpu_layers)
        context_length = self._context_length or min(model.trained_context, _CONTEXT_LENGTH)
        cache = self._cache = Cache(
            model,
            context_length=context_length,
            sequences=self._max_batch,
            batch_tokens=self._batch_tokens,
            threads=self._threads,
        )
        self._scheduler = LlamaCppScheduler(
            model, cache, sequences=self._max_batch, context_length=context_length
        )
        self._limits = Limits(context_length, model.vocab_size, model.end_ids)
