"""A worker's lifecycle, from ``start`` to ``cleanup``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from inspect import isawaitable
from typing import Any, NoReturn, cast

from rx_backend.disagg import DisaggregationMode
from rx_backend.dynamo import Handler
from rx_backend.engine import EngineConfig, LLMEngine, check_config, until_lost
from rx_backend.errors import (
    Disconnected,
    EngineShutdown,
    InvalidArgument,
    ResponseTimeout,
    as_backend_error,
)
from rx_backend.logger import describe, get_logger
from rx_backend.worker.dynamo_runtime import DynamoEndpoint
from rx_backend.worker.incoming import RequestGate
from rx_backend.worker.listing import keep_listed
from rx_backend.worker.shutdown import (
    EventLoopBlocked,
    Shutdown,
    ShutdownTimes,
    exit_unless_done,
    own_cancellation,
    wait_with_deadline,
)

__all__ = ("Lifecycle",)


class Lifecycle:
    """
    Starts an engine, serves it, and shuts it down (rows E1, E5, E7).

    Startup: ``start``, validate the config, serve, register the model. While serving, a worker that
    discovery no longer lists registers again. One whose engine is lost leaves discovery at once,
    and fails its requests with `Disconnected`, so that other workers continue them. Shutdown: leave
    discovery, wait for the grace period, refuse requests, let those in flight finish, stop the
    rest, wait for ``is_quiescent`` (prefill mode), ``drain``, ``cleanup``, shut down the runtime. A
    forced shutdown has one deadline for all remaining steps.

    ``start``, ``drain`` and ``cleanup`` run in the same task, that of :meth:`run`.

    Args:
        engine: The engine.
        endpoint: The worker's endpoint in the runtime.
        handler: Serves the requests, inside the gate.
        gate: Counts the requests in flight.
        shutdown: Requests the shutdown.
        mode: The worker's role.
        times: How long each step of the shutdown may take.
        registration: Returns what to register, from the engine's config: a config, and the folder
            with the model's tokenizer.
        probe: The health check's request, instead of the engine's own.
    """

    def __init__(
        self,
        engine: LLMEngine,
        endpoint: DynamoEndpoint,
        handler: Handler,
        gate: RequestGate,
        shutdown: Shutdown,
        *,
        mode: DisaggregationMode,
        times: ShutdownTimes,
        registration: Callable[[EngineConfig], tuple[EngineConfig, str]],
        probe: Mapping[str, Any] | None = None,
    ) -> None:
        self._engine = engine
        self._endpoint = endpoint
        self._handler = handler
        self._gate = gate
        self._shutdown = shutdown
        self._mode = mode
        self._times = times
        self._registration = registration
        self._probe = probe
        self._served: asyncio.Future[None] | None = None

    async def run(self, on_ready: Callable[[EngineConfig], None]) -> None:
        """
        Run the worker until shutdown is requested.

        Args:
            on_ready: Called once the worker is reachable and its model is registered.

        Raises:
            BackendError: The start failed, the engine, the runtime or the discovery registration
                was lost, or ``cleanup`` failed or took too long.
        """
        shutdown, unwind_s = self._shutdown, self._times.unwind_s
        undo = shutdown.forced.listen(lambda: shutdown.set_deadline(unwind_s))
        try:
            if not shutdown.requested.is_set:
                await self._with_engine(on_ready)
        except SystemExit as error:
            _log.error("worker failed", **describe(error))
            raise
        except Exception as error:
            typed = as_backend_error(error)
            if typed is error:
                raise
            _log.error("worker failed", **describe(error))
            raise typed from error
        finally:
            undo()
            self._endpoint.shutdown()
            shutdown.set_deadline(unwind_s)
            await self._end_of_serving()

    async def _with_engine(self, on_ready: Callable[[EngineConfig], None]) -> None:
        try:
            started = await self._start()
            if started is not None:
                await self._serve(*started, on_ready)
        except BaseException:
            # Only the first error is raised.
            try:
                await self._cleanup()
            except Exception as error:
                _log.warning("cleanup failed", error=repr(error))
            raise
        await self._cleanup()

    async def _start(self) -> tuple[EngineConfig, Mapping[str, Any] | None] | None:
        """Start the engine; return its config and health check, None if shutdown was requested."""
        asked = self._shutdown.requested
        started = None
        try:
            started = await wait_with_deadline(self._started(), None, asked)
        except (TimeoutError, EventLoopBlocked):
            if not asked.is_set:
                raise
        finally:
            self._shutdown.started = True
        return None if asked.is_set else started

    async def _started(self) -> tuple[EngineConfig, Mapping[str, Any] | None]:
        start = self._awaited("start", self._engine.start(self._endpoint.worker_id))
        return check_config(await start), self._probe or await self._own_probe()

    async def _serve(
        self,
        config: EngineConfig,
        probe: Mapping[str, Any] | None,
        on_ready: Callable[[EngineConfig], None],
    ) -> None:
        config, path = self._registration(config)
        served = asyncio.ensure_future(self._endpoint.serve(self._handler, probe))
        self._served = served
        lost = asyncio.ensure_future(until_lost(self._engine))
        try:
            await self._while_serving(served, lost, self._announce(config, path))
            if not self._shutdown.requested.is_set:
                on_ready(config)
                await self._while_serving(served, lost, self._stay_listed())
            # If the engine is lost from here on, its requests in flight are not awaited.
            lost.add_done_callback(self._fail_requests)
            await self._leave()
        except BaseException:
            await self._stop_requests()
            raise
        finally:
            lost.cancel()
            await asyncio.wait({lost}, timeout=self._shutdown.remaining_s(self._times.unwind_s))

    async def _leave_lost(self, lost: asyncio.Future[str]) -> None:
        """Refuse requests, leave discovery, then fail those in flight, for others to continue."""
        self._gate.close()
        _log.error("engine lost", requests=len(self._gate), reason=lost.result())
        await self._run_step("leaving discovery", self._endpoint.leave(), self._times.unwind_s)
        self._fail_requests(lost)
        raise _engine_lost(lost)

    def _fail_requests(self, lost: asyncio.Future[str]) -> None:
        if not lost.cancelled():
            self._gate.close()
            self._gate.fail_all(_engine_lost(lost))

    async def _announce(self, config: EngineConfig, path: str) -> None:
        await self._endpoint.reachable()
        await self._endpoint.register(config, self._mode, path)

    async def _stay_listed(self) -> NoReturn:
        failure = await keep_listed(self._endpoint)
        self._gate.close()
        await self._run_step("requests in flight", self._gate.idle(), self._times.drain_s)
        raise Disconnected(f"dropped from discovery, and registering again failed: {failure}")

    async def _while_serving(
        self, served: asyncio.Future[None], lost: asyncio.Future[str], step: Awaitable[None]
    ) -> None:
        """Run *step* until its end or a shutdown request; raise if serving or the engine ends."""
        running = asyncio.ensure_future(step)
        asked = asyncio.ensure_future(self._shutdown.requested)
        try:
            ends = {served, lost, running, asked}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if served.done():
                served.result()
                raise Disconnected("the runtime ended unexpectedly")
            if lost.done():
                await self._leave_lost(lost)
            if running.done():
                running.result()
        finally:
            for task in (running, asked):
                task.cancel()
            await asyncio.wait({running, asked})

    async def _leave(self) -> None:
        times, gate = self._times, self._gate
        _log.info("worker is leaving discovery", requests=len(gate))
        await self._run_step("leaving discovery", self._endpoint.leave(), times.unwind_s)
        await self._run_step("grace period", asyncio.sleep(times.grace_s))
        gate.close()
        _log.info("worker refuses new requests", requests=len(gate))
        await self._run_step("requests in flight", gate.idle(), times.drain_s)
        await self._stop_requests()
        if self._mode.is_prefill:
            await self._run_step("is_quiescent", self._quiescent(), times.settle_s)
        await self._run_step("drain", self._optional("drain", None), times.settle_s)

    async def _stop_requests(self) -> None:
        """Stop the requests in flight, and fail those that don't end, before the clean-up."""
        gate = self._gate
        gate.close()
        gate.stop_all()
        try:
            async with asyncio.timeout(self._times.unwind_s) as limit:
                # The other half of a forced shutdown's time is for `cleanup`.
                with self._shutdown.shorten_if_forced(limit, share=0.5):
                    await gate.idle()
        except TimeoutError:
            _log.warning("requests did not stop", requests=len(gate))
            gate.fail_all(EngineShutdown("the worker is shutting down"))

    async def _quiescent(self) -> None:
        while not await self._optional("is_quiescent", default=True):  # noqa: ASYNC110 - no event
            await asyncio.sleep(self._times.poll_s)

    async def _own_probe(self) -> Mapping[str, Any] | None:
        probe = await self._optional("health_check_payload", None)
        if probe is None or isinstance(probe, Mapping):
            return cast("Mapping[str, Any] | None", probe)
        raise InvalidArgument(
            f"{type(self._engine).__name__}.health_check_payload must return a request as a "
            f"mapping, or None, got {type(probe).__name__}"
        )

    async def _optional(self, name: str, default: Any) -> Any:
        """Call an optional method of the engine."""
        method = getattr(self._engine, name, None)
        return default if method is None else await self._awaited(name, method())

    async def _awaited(self, name: str, result: object) -> Any:
        """Await the result of an engine's method."""
        if not isawaitable(result):
            raise InvalidArgument(
                f"{type(self._engine).__name__}.{name} must be an async method, "
                f"it returned {type(result).__name__}"
            )
        return await own_cancellation(result)

    async def _cleanup(self) -> None:
        """Clean up within a deadline, which a forced shutdown brings forward."""
        times, began = self._times, asyncio.get_running_loop().time()
        limit = asyncio.timeout(times.cleanup_s)
        with exit_unless_done(times.cleanup_s + times.unwind_s, "cleanup"):
            try:
                async with limit:
                    with self._shutdown.shorten_if_forced(limit):
                        await self._awaited("cleanup", self._engine.cleanup())
            except TimeoutError:
                if not limit.expired():
                    raise
                took_s = asyncio.get_running_loop().time() - began
                raise ResponseTimeout(f"cleanup did not end within {took_s:g} s") from None

    async def _run_step(
        self, what: str, step: Awaitable[object], seconds: float | None = None
    ) -> None:
        """Run a step of the shutdown; log if it does not succeed."""
        try:
            await wait_with_deadline(step, seconds, self._shutdown.forced)
        except TimeoutError:
            _log.warning("shutdown step timed out", step=what, seconds=seconds)
        except Exception as error:
            _log.warning("shutdown step failed", step=what, error=repr(error))

    async def _end_of_serving(self) -> None:
        if self._served is None:
            return
        await asyncio.wait({self._served}, timeout=self._shutdown.remaining_s(self._times.unwind_s))
        if not self._served.done():
            _log.warning("the runtime did not stop serving")
            self._served.cancel()
        elif not self._served.cancelled():
            self._served.exception()


def _engine_lost(lost: asyncio.Future[str]) -> Disconnected:
    return Disconnected(f"the engine is lost: {lost.result()}")


_log = get_logger(__name__)
