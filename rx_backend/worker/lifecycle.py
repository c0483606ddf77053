"""A worker's life, from ``start`` to ``cleanup``, apart from the runtime that it runs on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from rx_backend.disagg import DisaggregationMode
from rx_backend.engine import EngineConfig, LLMEngine, check_config
from rx_backend.errors import Disconnected, ResponseTimeout, as_backend_error
from rx_backend.logger import get_logger
from rx_backend.worker.gate import RequestGate
from rx_backend.worker.runtime import Handler, ModelEntry, WorkerRuntime
from rx_backend.worker.shutdown import Shutdown, ShutdownTimes, wait_with_deadline

__all__ = ("Lifecycle",)


class Lifecycle:
    """
    Takes an engine through its life (rows E1, E5).

    Up: ``start``, check of the config, serve, register the model. Down: leave discovery, a grace
    period, refuse requests, let those in flight end, stop what is left, ``is_quiescent`` until it
    says yes (prefill mode), ``drain``, ``cleanup``, the runtime's end.

    ``start``, ``drain`` and ``cleanup`` run in one task, that of :meth:`run`.

    Args:
        engine: The engine.
        runtime: The worker's place in the runtime.
        handler: Serves the requests, inside the gate.
        gate: Knows those in flight.
        shutdown: Asks for the end.
        mode: The worker's role.
        times: How long each step of the end may take.
        model_path: Folder with the model's tokenizer, from the engine's config.
        probe: The health check's request to use instead of the engine's own.
    """

    def __init__(
        self,
        engine: LLMEngine,
        runtime: WorkerRuntime,
        handler: Handler,
        gate: RequestGate,
        shutdown: Shutdown,
        *,
        mode: DisaggregationMode,
        times: ShutdownTimes,
        model_path: Callable[[EngineConfig], str],
        probe: Mapping[str, Any] | None = None,
    ) -> None:
        self._engine = engine
        self._runtime = runtime
        self._handler = handler
        self._gate = gate
        self._shutdown = shutdown
        self._mode = mode
        self._times = times
        self._model_path = model_path
        self._probe = probe
        self._served: asyncio.Future[None] | None = None

    async def run(self, on_ready: Callable[[EngineConfig], None]) -> None:
        """
        Live until the shutdown is asked for.

        Args:
            on_ready: Called once the worker can be reached and its model is registered.

        Raises:
            BackendError: The start failed, the runtime was lost, or ``cleanup`` failed.
        """
        try:
            if not self._shutdown.asked.is_set:
                await self._with_engine(on_ready)
        except Exception as error:
            typed = as_backend_error(error)
            if typed is error:
                raise
            raise typed from error
        finally:
            self._runtime.shutdown()
            await self._end_of_serving()

    async def _with_engine(self, on_ready: Callable[[EngineConfig], None]) -> None:
        try:
            config = await self._started()
            if config is not None:
                await self._serve(config, on_ready)
        except BaseException:
            # The first error is the one to tell.
            try:
                await self._cleanup()
            except Exception as error:
                _log.warning("cleanup failed", error=repr(error))
            raise
        await self._cleanup()

    async def _started(self) -> EngineConfig | None:
        """Start the engine; None if the end was asked for in the meantime."""
        start = self._engine.start(self._runtime.worker_id)
        try:
            return check_config(await wait_with_deadline(start, None, self._shutdown.asked))
        except TimeoutError:
            if self._shutdown.asked.is_set:
                return None
            raise

    async def _serve(self, config: EngineConfig, on_ready: Callable[[EngineConfig], None]) -> None:
        probe = self._probe or await self._optional("health_check_payload", None)
        served = asyncio.ensure_future(self._runtime.serve(self._handler, probe))
        self._served = served
        try:
            await self._while_serving(served, self._announce(config))
            if not self._shutdown.asked.is_set:
                on_ready(config)
                await self._while_serving(served, self._shutdown.asked)
        except BaseException:
            await self._stop_requests()
            raise
        await self._leave()

    async def _announce(self, config: EngineConfig) -> None:
        await self._runtime.reachable()
        path = self._model_path(config)
        await self._runtime.register(ModelEntry(config=config, mode=self._mode, path=path))

    async def _while_serving(self, served: asyncio.Future[None], step: Awaitable[object]) -> None:
        """Wait for *step*, for the wish to end, or for the end of serving, which is an error."""
        waiting = asyncio.ensure_future(_awaited(step))
        asked = asyncio.ensure_future(_awaited(self._shutdown.asked))
        try:
            await asyncio.wait({served, waiting, asked}, return_when=asyncio.FIRST_COMPLETED)
            if served.done():
                served.result()
                raise Disconnected("the runtime ended by itself")
            if waiting.done():
                waiting.result()
        finally:
            for task in (waiting, asked):
                task.cancel()
            await asyncio.wait({waiting, asked})

    async def _leave(self) -> None:
        times, gate = self._times, self._gate
        _log.info("worker leaves discovery", requests=len(gate))
        await self._run_step("leaving discovery", self._runtime.leave(), times.unwind_s)
        await self._run_step("grace period", asyncio.sleep(times.grace_s))
        gate.close()
        _log.info("worker refuses new requests", requests=len(gate))
        if not await self._run_step("requests in flight", gate.idle(), times.drain_s):
            await self._stop_requests()
        if self._mode.is_prefill:
            await self._run_step("is_quiescent", self._quiescent(), times.settle_s)
        await self._run_step("drain", self._optional("drain", None), times.settle_s)

    async def _stop_requests(self) -> None:
        """Stop what is in flight, so that the engine is cleaned up without any."""
        gate = self._gate
        gate.close()
        gate.stop_all()
        try:
            async with asyncio.timeout(self._times.unwind_s):
                await gate.idle()
        except TimeoutError:
            _log.warning("requests did not stop", requests=len(gate))

    async def _quiescent(self) -> None:
        while not await self._optional("is_quiescent", default=True):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(self._times.poll_s)

    async def _optional(self, name: str, default: Any) -> Any:
        """Call what an engine need not have."""
        method = getattr(self._engine, name, None)
        return default if method is None else await method()

    async def _cleanup(self) -> None:
        """Clean up; once the end is forced, the engine has a short while left for it."""
        unwind_s = self._times.unwind_s
        loop = asyncio.get_running_loop()
        limit = asyncio.timeout(None)
        try:
            async with limit:
                undo = self._shutdown.forced.listen(
                    lambda: limit.reschedule(loop.time() + unwind_s)
                )
                try:
                    await self._engine.cleanup()
                finally:
                    undo()
        except TimeoutError:
            if not limit.expired():
                raise
            raise ResponseTimeout(
                f"cleanup did not end within {unwind_s:g} s of a forced shutdown"
            ) from None

    async def _run_step(
        self, what: str, step: Awaitable[object], seconds: float | None = None
    ) -> bool:
        """Take a step of the end: whether it was done. What goes wrong is logged."""
        try:
            await wait_with_deadline(step, seconds, self._shutdown.forced)
        except TimeoutError:
            _log.warning("shutdown step given up", step=what, seconds=seconds)
        except Exception as error:
            _log.warning("shutdown step failed", step=what, error=repr(error))
        else:
            return True
        return False

    async def _end_of_serving(self) -> None:
        if self._served is None:
            return
        await asyncio.wait({self._served}, timeout=self._times.unwind_s)
        if not self._served.done():
            _log.warning("the runtime goes on serving")
            self._served.cancel()
        elif not self._served.cancelled():
            self._served.exception()


async def _awaited(step: Awaitable[object]) -> None:
    await step


_log = get_logger(__name__)
