"""
Hugging Face transformers as an engine: its continuous batching, in a thread of this process.

Importing this module imports neither transformers nor torch.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import threading
from collections.abc import AsyncGenerator
from importlib import import_module
from typing import Any, Final

from rx_backend.context import RequestContext
from rx_backend.engine import EngineConfig, LLMEngine
from rx_backend.engines.checks import whole
from rx_backend.engines.chunk_queue import ChunkQueue
from rx_backend.engines.request_checks import (
    check_options,
    check_prompt,
    output_tokens,
    stop_token_ids,
)
from rx_backend.engines.transformers.sampling import HONOURED, Sampling
from rx_backend.errors import Disconnected, EngineShutdown, InvalidArgument
from rx_backend.extras import import_extra
from rx_backend.protocols import FinishReason, LLMEngineOutput, PreprocessedRequest, usage

__all__ = ("TransformersEngine",)

# Chunks of a consumer that lags wait: there is no way to pause a single request.
_AHEAD: Final = 2**62

_WATCH_S: Final = 0.25
_DRAIN_S: Final = 0.01


class TransformersEngine(LLMEngine):
    """
    Serve a model with the continuous batching of transformers, 5.18 or newer.

    A request that is stopped or dropped frees its blocks of the KV cache before the next step. Where
    the batching thread has died, requests fail with `Disconnected`, so that they continue on another
    worker, and `lost` returns (row E7).

    Args:
        model_path: Folder or name of the model.
        max_batch: Most requests in a step; further ones wait.
        max_batch_tokens: Most tokens in a step; a longer prompt is read in several.
        kv_tokens: Size of the KV cache, in tokens; also the limit of a request's context.
        block_size: Size of a block of the KV cache, in tokens.
        dtype: Type of the weights, as ``bfloat16``; ``auto`` takes the one they are stored in.
        device: As ``cuda:1``; a GPU if there is one, when left out.
        seed: Seed of the sampling, for all requests together; a random one when left out.

    Raises:
        ImportError: transformers is not installed, or too old.
        InvalidArgument: A number is below 1, or the KV cache is smaller than a block.
    """

    needs_tokenizer = True

    def __init__(
        self,
        model_path: str,
        *,
        max_batch: int = 8,
        max_batch_tokens: int = 512,
        kv_tokens: int = 16_384,
        block_size: int = 256,
        dtype: str = "auto",
        device: str | None = None,
        seed: int | None = None,
    ) -> None:
        self._path = model_path
        self._dtype = dtype
        self._device = device
        block_size = whole("block_size", block_size, low=4, unit="tokens")
        kv_tokens = whole("kv_tokens", kv_tokens, low=block_size, unit="tokens")
        self._batching: Any = _import().ContinuousBatchingConfig(
            page_size=block_size,
            num_blocks=kv_tokens // block_size,
            max_batch_tokens=whole("max_batch_tokens", max_batch_tokens, low=1, unit="tokens"),
            max_requests_per_batch=whole("max_batch", max_batch, low=1, unit="requests"),
            per_request_processors=True,
            seed=seed,
        )
        self._manager: Any = None
        self._sampling: Any = None
        self._context_length = 0
        self._vocab_size = 0
        self._numbers = itertools.count(1)
        self._open: set[ChunkQueue] = set()
        self._watch: asyncio.Task[None] | None = None
        self._gone = asyncio.Event()

    async def start(self, worker_id: int) -> EngineConfig:
        """
        Load the model and start the batching thread.

        Raises:
            InvalidArgument: Transformers can't load the folder.
            Exception: Whatever else transformers raises.
        """
        manager, own = await asyncio.to_thread(self._load)
        self._gone.clear()
        self._sampling = Sampling(own)
        text = manager.model.config.get_text_config()
        batching = manager.continuous_batching_config
        kv_tokens = batching.num_blocks * batching.page_size
        self._vocab_size = text.vocab_size
        self._context_length = min(text.max_position_embeddings, kv_tokens)
        _start(manager)
        self._manager = manager
        self._watch = asyncio.create_task(self._watch_thread(manager))
        return EngineConfig(
            model=self._path,
            context_length=self._context_length,
            kv_cache_block_size=batching.page_size,
            total_kv_blocks=batching.num_blocks,
            max_num_seqs=batching.max_requests_per_batch,
            max_num_batched_tokens=batching.max_batch_tokens,
        )

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        """
        Stream the tokens of *request*.

        Raises:
            InvalidArgument: The prompt does not fit, or an option can't be honoured.
            Disconnected: The batching thread has died.
            EngineShutdown: The engine is not started, or was cleaned up.
        """
        manager = self._running()
        check_options(type(self).__name__, request, HONOURED)
        prompt = check_prompt(
            request, context_length=self._context_length, vocab_size=self._vocab_size
        )
        limit = output_tokens(request, self._context_length)
        ends = stop_token_ids(request, self._sampling.end_ids)
        options = self._sampling.options(request.sampling_options)
        request_id = str(next(self._numbers))

        def leave() -> None:
            if queue.is_left or not context.defers_abort:
                _cancel(manager, request_id)

        queue = ChunkQueue(request, context, ahead=_AHEAD, on_change=leave)
        with queue:
            self._open.add(queue)
            try:
                if not context.is_stopped:
                    answer = _Answer(queue, len(prompt), ends)
                    _discard_unclaimed(manager)
                    manager.register_result_handler(request_id, answer.receive)
                    manager.add_request(
                        prompt,
                        request_id,
                        max_new_tokens=limit,
                        streaming=True,
                        eos_token_id=sorted(ends),
                        **options,
                    )
                async for chunk in queue:
                    yield chunk
            finally:
                self._open.discard(queue)

    async def lost(self) -> str:
        """Wait until the batching thread has died; return the reason (row E7)."""
        await self._gone.wait()
        return self._reason()

    async def cleanup(self) -> None:
        """End open streams with `EngineShutdown`, and the batching thread (row E5)."""
        manager, self._manager = self._manager, None
        if manager is None:
            return
        if self._watch is not None:
            self._watch.cancel()
        for queue in self._open:
            queue.end(EngineShutdown("the engine was cleaned up"))
        await asyncio.to_thread(_stop, manager)

    async def is_quiescent(self) -> bool:
        """Return whether nothing is queued or running."""
        manager = self._manager
        if self._open or manager is None or not manager.is_running():
            return not self._open
        return manager.input_queue.empty() and not manager.batch_processor.has_pending_requests()

    async def drain(self) -> None:
        """Wait until nothing is queued or running."""
        # The manager has no event for it.
        while not await self.is_quiescent():  # noqa: ASYNC110
            await asyncio.sleep(_DRAIN_S)

    async def health_check_payload(self) -> dict[str, Any] | None:
        """Return a request for one token."""
        return {"token_ids": [1], "stop_conditions": {"max_tokens": 1}}

    def _load(self) -> tuple[Any, Any]:
        """Return a manager that holds the model and its cache, and the model's generation config."""
        transformers = _import()
        device = self._device
        if device is None:
            device = "cuda" if import_module("torch").cuda.is_available() else "cpu"
        load = transformers.AutoModelForCausalLM.from_pretrained
        try:
            model = load(self._path, dtype=self._dtype).to(device)
        except (OSError, ValueError) as error:
            raise InvalidArgument(
                f"model_path must be a folder that transformers loads, got {self._path}: {error}"
            ) from error
        own = model.generation_config
        manager = model.init_continuous_batching(
            generation_config=Sampling(own).for_all(), continuous_batching_config=self._batching
        )
        manager.warmup()
        return manager, own

    def _running(self) -> Any:
        if self._manager is None:
            raise EngineShutdown("the engine is not running")
        if self._gone.is_set() or not self._manager.is_running():
            raise Disconnected(self._reason())
        return self._manager

    def _reason(self) -> str:
        error = self._manager and self._manager.background_thread_status.fatal_error
        return f"the batching thread of transformers has died: {error}"

    async def _watch_thread(self, manager: Any) -> None:
        """Fail what is open once the thread is dead: it may have died between two requests."""
        while manager.is_running():  # noqa: ASYNC110
            await asyncio.sleep(_WATCH_S)
        self._gone.set()
        for queue in self._open:
            queue.end(Disconnected(self._reason()))


class _Answer:
    """Makes chunks of a request's outputs, each of which has all tokens so far."""

    def __init__(self, queue: ChunkQueue, prompt: int, ends: frozenset[int]) -> None:
        self._queue = queue
        self._prompt = prompt
        self._ends = ends
        self._seen = 0

    def receive(self, output: Any) -> None:
        """Take an output; transformers calls this in the event loop."""
        if output.error is not None:
            self._queue.end(Disconnected(f"transformers: {output.error}"))
            return
        ids = output.generated_tokens[self._seen :]
        self._seen += len(ids)
        chunk = LLMEngineOutput(ids)
        if output.is_finished():
            is_end = not self._ends.isdisjoint(output.generated_tokens[-1:])
            chunk.finish_reason = FinishReason.STOP if is_end else FinishReason.LENGTH
            chunk.completion_usage = usage(self._prompt, self._seen)
        self._queue.receive(chunk)
        if output.is_finished():
            self._queue.end()


def _cancel(manager: Any, request_id: str) -> None:
    """Take a request out of the batch unless it has finished, which removes its handler."""
    if manager.output_router.result_handlers.pop(request_id, None) is not None:
        manager.cancel_request(request_id)


def _discard_unclaimed(manager: Any) -> None:
    """Forget outputs made between a request's cancellation and its end: they have no handler."""
    while manager.get_result(timeout=0) is not None:
        pass


def _start(manager: Any) -> None:
    """Start the batching thread; a process that ends without `cleanup` does not wait for it."""
    # A thread is a daemon if the one that makes it is.
    starter = threading.Thread(target=manager.start, daemon=True)
    starter.start()
    starter.join()
    # PyTorch aborts the process if the interpreter ends under it.
    atexit.register(manager.stop, hard_stop=True)


def _stop(manager: Any) -> None:
    atexit.unregister(manager.stop)
    manager.stop(hard_stop=True)
    manager.destroy()


def _import() -> Any:
    transformers = import_extra(
        "transformers",
        "engine-transformers",
        package="transformers",
        needed_by="TransformersEngine",
    )
    if not hasattr(transformers, "ContinuousBatchingConfig"):
        raise ImportError(
            f"TransformersEngine needs transformers 5.18 or newer, not {transformers.__version__}"
        )
    return transformers
