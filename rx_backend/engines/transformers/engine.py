"""
Hugging Face transformers as an engine: its continuous batching, in a thread of this process.

Importing this module imports neither transformers nor torch.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import AsyncGenerator
from importlib import import_module
from typing import Any, Final

from rx_backend.checks import integer
from rx_backend.context import RequestContext
from rx_backend.engine import EngineConfig
from rx_backend.engines.step_thread import StepThread
from rx_backend.engines.stepped_engine import Limits, SteppedEngine
from rx_backend.engines.transformers.sampling import HONOURED, Sampling
from rx_backend.engines.transformers.scheduler import BatchingScheduler
from rx_backend.errors import InvalidArgument
from rx_backend.extras import import_extra
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest

__all__ = ("TransformersEngine",)

_NO_LIMIT: Final = 2**62
"""Of requests: others wait in the manager. Of chunks: it can't pause a single request."""


class TransformersEngine(SteppedEngine):
    """
    Serve a model with the continuous batching of transformers, 5.18 or newer.

    A stopped or dropped request frees its blocks of the KV cache within a step. If the batching
    thread has died, requests fail with `Disconnected`, so that they continue on another worker, and
    `lost` returns (row E7).

    Args:
        model_path: Folder or name of the model.
        max_batch: Maximum of requests in a step; others wait.
        max_batch_tokens: Maximum of tokens in a step; longer prompts take several steps.
        kv_tokens: Size of the KV cache, in tokens; also the limit of a request's context.
        block_size: Size of a block of the KV cache, in tokens.
        dtype: Type of the weights, such as ``bfloat16``; ``auto`` for the stored type.
        device: For example ``cuda:1``; by default a GPU if there is one.
        seed: Seed of the sampling, for all requests together; random by default.

    Raises:
        ImportError: transformers is not installed, or too old.
        InvalidArgument: A number is below 1, or the KV cache is smaller than a block.
    """

    honours = HONOURED

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
        super().__init__()
        self._path = model_path
        self._dtype = dtype
        self._device = device
        block_size = integer("block_size", block_size, low=4, unit="tokens")
        kv_tokens = integer("kv_tokens", kv_tokens, low=block_size, unit="tokens")
        self._batching: Any = _import().ContinuousBatchingConfig(
            page_size=block_size,
            num_blocks=kv_tokens // block_size,
            max_batch_tokens=integer("max_batch_tokens", max_batch_tokens, low=1, unit="tokens"),
            max_requests_per_batch=integer("max_batch", max_batch, low=1, unit="requests"),
            per_request_processors=True,
            seed=seed,
        )
        self._manager: Any = None

    async def start(self, worker_id: int) -> EngineConfig:
        """
        Load the model and start the batching thread.

        Raises:
            InvalidArgument: transformers can't load the folder.
            Exception: Any other error of transformers.
        """
        manager, sampling = await asyncio.to_thread(self._load)
        batching = manager.continuous_batching_config
        text = manager.model.config.get_text_config()
        kv_tokens = batching.num_blocks * batching.page_size
        context_length = min(text.max_position_embeddings, kv_tokens)
        self._limits = Limits(context_length, text.vocab_size, sampling.end_ids)
        _start(manager)
        self._manager = manager
        scheduler = BatchingScheduler(manager, sampling)
        self._steps = StepThread(scheduler, max_sequences=_NO_LIMIT, max_ahead=_NO_LIMIT)
        return EngineConfig(
            model=self._path,
            context_length=context_length,
            kv_cache_block_size=batching.page_size,
            total_kv_blocks=batching.num_blocks,
            max_num_seqs=batching.max_requests_per_batch,
            max_num_batched_tokens=batching.max_batch_tokens,
        )

    def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        """
        Stream the tokens of *request*, which is queued when it is first pulled.

        Raises:
            InvalidArgument: The prompt is too long, or an option can't be honoured.
            EngineShutdown: The engine is not started.
        """
        return self.stream(request, context, self.check(request))

    async def cleanup(self) -> None:
        """End open streams with `EngineShutdown`, and both threads (row E5)."""
        await super().cleanup()
        manager, self._manager = self._manager, None
        if manager is not None:
            await asyncio.to_thread(_stop, manager)

    def _load(self) -> tuple[Any, Sampling]:
        """Return a manager with the model and its cache, and the model's own options."""
        transformers = _import()
        device = self._device
        if device is None:
            device = "cuda" if import_module("torch").cuda.is_available() else "cpu"
        load = transformers.AutoModelForCausalLM.from_pretrained
        try:
            model = load(self._path, dtype=self._dtype).to(device)
        except (OSError, ValueError) as error:
            raise InvalidArgument(
                f"model_path: expected a folder transformers can load, got {self._path}: {error}"
            ) from error
        sampling = Sampling(model.generation_config)
        manager = model.init_continuous_batching(
            generation_config=sampling.for_all(), continuous_batching_config=self._batching
        )
        manager.warmup()
        return manager, sampling


def _start(manager: Any) -> None:
    """Start the batching thread; a process that ends without `cleanup` does not wait for it."""
    # A thread inherits being a daemon.
    starter = threading.Thread(target=manager.start, daemon=True)
    starter.start()
    starter.join()
    # PyTorch aborts the process if the interpreter exits while it runs.
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
