"""The command ``rx-backend dynamo``: one of Dynamo's own workers, with our operators around it."""

from __future__ import annotations

import inspect
import os
import runpy
import sys
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any, cast

from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.disagg import DisaggregationMode
from rx_backend.dynamo.context import BridgedContext
from rx_backend.dynamo.outlet import ClientLeft, Outlet, ResponseSender
from rx_backend.dynamo.serving import Handler, serving
from rx_backend.engine import ChunkSource, EngineConfig, LLMEngine
from rx_backend.errors import InvalidArgument
from rx_backend.extras import import_extra
from rx_backend.pipeline import PipelineSource, standard_pipeline
from rx_backend.protocols import PreprocessedRequest, to_builtins
from rx_backend.telemetry.switch import OtlpSwitch, report_telemetry
from rx_backend.testing.engine_loading import load_pipeline

__all__ = ("HandlerEngine", "run_module", "with_pipeline", "wrapped_endpoints")

_GENERATE = "generate"


def run_module(
    module: str,
    arguments: Sequence[str],
    *,
    pipeline: str | None = None,
    mode: DisaggregationMode | str = DisaggregationMode.AGGREGATED,
    otlp: str | None = None,
    say: Callable[[str], object] = print,
) -> int:
    """
    Run one of Dynamo's workers as ``python -m module arguments...`` does, with a pipeline in it.

    The module runs unmodified, and so do the processes that it starts.

    Args:
        module: The worker, such as ``dynamo.vllm``.
        arguments: Its arguments.
        pipeline: ``module:name`` of a pipeline, or of a function that returns one from a request's
            scope; by default the standard pipeline.
        mode: The worker's role, as in its own arguments: ``agg``, ``prefill`` or ``decode``.
        otlp: Where to send traces and metrics, see :class:`OtlpSwitch`.
        say: Called with each line of output.

    Returns:
        The module's exit code; after an exception, which is printed, 1.

    Raises:
        InvalidArgument: There is no such module, the pipeline can't be loaded, the *mode* is
            unknown, the runtime is not installed, or telemetry can't be set up.
    """
    _check_module(module)
    operators = load_pipeline(pipeline)
    role = DisaggregationMode.parse(mode)
    switch = OtlpSwitch(otlp, os.environ)
    telemetry = switch.configure("" if role is DisaggregationMode.AGGREGATED else role.value)
    sys.argv = [module, *arguments]
    with report_telemetry(telemetry, say), wrapped_endpoints(operators, mode=role):
        return _run(module)


def _check_module(name: str) -> None:
    try:
        found = find_spec(name)
    except (ImportError, ValueError) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is None or not f"{name}.".startswith(f"{missing}."):
            raise InvalidArgument(f"module: {name!r} can't be imported: {error}") from error
        found = None
    if found is None:
        raise InvalidArgument(f"module: no module named {name!r}")


def _run(module: str) -> int:
    try:
        # Spawned processes import the main module by name, without these changes.
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
            return 1
        return end.code or 0
    except Exception:
        traceback.print_exc()
        return 1
    return 0


@contextmanager
def wrapped_endpoints(
    pipeline: PipelineSource = standard_pipeline,
    *,
    mode: DisaggregationMode | str = DisaggregationMode.AGGREGATED,
) -> Generator[None]:
    """
    In the block, endpoints that serve a handler named ``generate`` serve it through a pipeline.

    Other handlers, such as those for LoRA adapters, are served unchanged.

    Args:
        pipeline: A pipeline, or a function that returns one from a request's scope.
        mode: The worker's role.

    Raises:
        InvalidArgument: The package ``ai-dynamo-runtime`` is not installed.
    """
    try:
        endpoint = import_extra(
            "dynamo._core", "dynamo", package="ai-dynamo-runtime", needed_by="a worker"
        ).Endpoint
    except ImportError as error:
        raise InvalidArgument(str(error)) from error
    # The runtime has no hook for this, but its class can be patched.
    original = endpoint.serve_endpoint

    def serve_endpoint(self: object, handler: Handler, *args: Any, **options: Any) -> Any:
        if getattr(handler, "__name__", None) == _GENERATE:
            handler = with_pipeline(handler, pipeline, mode=mode)
        return original(self, handler, *args, **options)

    endpoint.serve_endpoint = serve_endpoint
    try:
        yield
    finally:
        endpoint.serve_endpoint = original


def with_pipeline(
    handler: Handler,
    pipeline: PipelineSource = standard_pipeline,
    *,
    mode: DisaggregationMode | str = DisaggregationMode.AGGREGATED,
) -> Handler:
    """
    Return a handler that passes the chunks of *handler* through a pipeline.

    A request without a prompt of token ids, as for a worker that embeds or tokenizes itself, goes to
    *handler* directly, and its answer is passed on unchanged.

    Args:
        handler: Called with a request and the runtime's context; returns an iterator of chunks.
        pipeline: A pipeline, or a function that returns one from a request's scope.
        mode: The worker's role.
    """
    engine = HandlerEngine(handler)
    served = serving(EngineAdapter(engine, mode, pipeline))

    def generate(
        request: Any, context: Any, response_sender: ResponseSender | None = None
    ) -> AsyncIterator[Any]:
        if _has_tokens(request):
            return served(request, context, response_sender)
        return _unchanged(engine.answer(request, context), response_sender)

    return generate


class HandlerEngine(LLMEngine):
    """
    A Dynamo handler as an engine; the handler's owner starts and ends the engine underneath.

    The handler gets the runtime's own context, which it may pass on to the runtime. So it sees the
    runtime's signals and the end of its stream, but no other stop from our side.

    Args:
        handler: Called with a request as a dict and the runtime's context.
    """

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        # The same check as the runtime's.
        self._takes_context = "context" in inspect.signature(handler).parameters

    async def start(self, worker_id: int) -> EngineConfig:
        """Register nothing: the worker registers the model."""
        return EngineConfig(model=_GENERATE)

    def generate(self, request: PreprocessedRequest, context: RequestContext) -> ChunkSource:
        """Call the handler."""
        own = context.runtime_context if isinstance(context, BridgedContext) else context
        return self.answer(to_builtins(request), own)

    def answer(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """Call the handler, as the runtime does."""
        return self._handler(request, context) if self._takes_context else self._handler(request)


def _has_tokens(request: object) -> bool:
    if not isinstance(request, Mapping):
        return False
    prompt = cast("Mapping[str, object]", request).get("token_ids")
    return isinstance(prompt, list) and not isinstance(cast("list[object]", [*prompt, 0])[0], list)


async def _unchanged(
    items: AsyncIterator[Any], response_sender: ResponseSender | None
) -> AsyncGenerator[Any]:
    if response_sender is None:
        async for item in items:
            yield item
        return
    outlet = Outlet(response_sender, merge=False)
    with suppress(ClientLeft):
        try:
            async for item in items:
                if outlet.send(item):
                    await outlet.room()
        finally:
            await outlet.finish()
    outlet.close()
