"""An engine that plays recordings."""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import AsyncGenerator, Iterator
from itertools import cycle

from rx_backend.context import RequestContext
from rx_backend.engine import EngineConfig, LLMEngine
from rx_backend.engines.checks import number, text
from rx_backend.errors import EngineShutdown, InvalidArgument, StreamIncomplete
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest, usage
from rx_backend.recording.files import Source, read_recordings
from rx_backend.recording.model import Recording

__all__ = ("ReplayEngine",)


class ReplayEngine(LLMEngine):
    """
    Plays recordings: the same chunks, with the same gaps, and the same end.

    Each chunk is due at its recorded time since `generate` was called, divided by *speed*. Times
    count from there and not from chunk to chunk, so they don't drift, and in virtual time they are
    exactly the recorded ones. A consumer that comes late gets what is due at once.

    A request gets the recording of its own id (``context.id``), and where there is none, the next
    one in turn. What it asks for is not looked at.

    How a stream ends:

    - completed: as recorded, usually with its terminal.
    - error: the typed error is raised when it was recorded, with its kind and message.
    - dropped: nobody knows what would have come. When the recorded consumer left, the stream ends
      with a `cancelled` terminal.
    - cut short: after its last chunk it raises `StreamIncomplete`.
    - stopped: a stop of the replaying request ends the stream at once with a `cancelled` terminal
      and the usage so far (row E4), whatever was recorded.

    Args:
        recordings: A recording; a file; a directory, whose ``.jsonl`` files are all read, in the
            order of their names; or an iterable of these.
        speed: How many times as fast as recorded; ``math.inf`` for no waiting, which gives way to
            other tasks once per chunk all the same.
        model: Model name to announce; the first recording's by default.

    Raises:
        RecordingError: A file can't be read; names file, line and what was expected.
        InvalidArgument: There is no recording, or *speed* is not above 0.

    >>> import asyncio
    >>> from rx_backend.recording import Ending, TimedChunk
    >>> from rx_backend.testing import run_virtual
    >>> recorded = Recording(
    ...     chunks=[
    ...         TimedChunk(20.0, LLMEngineOutput.token(7)),
    ...         TimedChunk(50.0, LLMEngineOutput.stop()),
    ...     ],
    ...     end=Ending(50.0, "completed"),
    ... )
    >>> async def main():
    ...     engine = ReplayEngine(recorded, speed=2)
    ...     request = PreprocessedRequest(token_ids=[1])
    ...     async for chunk in engine.generate(request, RequestContext()):
    ...         print(asyncio.get_running_loop().time(), chunk)
    >>> run_virtual(main())
    0.01 LLMEngineOutput(token_ids=[7])
    0.025 LLMEngineOutput(finish_reason=FinishReason.STOP)
    """

    def __init__(self, recordings: Source, speed: float = 1.0, *, model: str | None = None) -> None:
        self.recordings = tuple(read_recordings(recordings))
        if not self.recordings:
            raise InvalidArgument("recordings: expected at least one, got none")
        self._speed = speed
        if speed != math.inf:
            self._speed = number("speed", speed, low=0, above=True)
        named = (recording.model for recording in self.recordings if recording.model)
        self._model = next(named, "replay") if model is None else text("model", model)
        self._in_turn = cycle(self.recordings)
        by_id: dict[str, list[Recording]] = {}
        for recording in self.recordings:
            if recording.request_id is not None:
                by_id.setdefault(recording.request_id, []).append(recording)
        self._by_id: dict[str, Iterator[Recording]] = {
            request_id: cycle(recordings) for request_id, recordings in by_id.items()
        }
        self._shut = False

    async def start(self, worker_id: int) -> EngineConfig:
        """Announce the model; there is nothing to load."""
        self._shut = False
        return EngineConfig(model=self._model)

    def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        """
        Play the recording for *context*; its time begins now.

        Raises:
            EngineShutdown: The engine was cleaned up.
        """
        if self._shut:
            raise _shut_down()
        recording = next(self._by_id.get(context.id, self._in_turn))
        loop = asyncio.get_running_loop()
        return self._play(recording, request, context, _Timing(loop, self._speed))

    async def cleanup(self) -> None:
        """End the streams that are left with `EngineShutdown` at their next chunk (row E5)."""
        self._shut = True

    async def _play(
        self,
        recording: Recording,
        request: PreprocessedRequest,
        context: RequestContext,
        timing: _Timing,
    ) -> AsyncGenerator[LLMEngineOutput]:
        made = 0
        is_over = False
        unlisten = context.stopped().listen(timing.wake)
        try:
            for timed in recording.chunks:
                await timing.wait(timed.time_ms, context)
                if self._shut:
                    raise _shut_down()
                if context.is_stopped:
                    yield _cancelled(request, made)
                    return
                made += len(timed.chunk.token_ids)
                is_over = timed.chunk.finish_reason is not None
                yield _fresh(timed.chunk)
            end = recording.end
            if end is not None:
                await timing.wait(end.time_ms, context)
            if is_over and (end is None or end.error is None):
                return
            if self._shut:
                raise _shut_down()
            if context.is_stopped or (end is not None and end.how == "dropped"):
                yield _cancelled(request, made)
            elif end is None:
                raise StreamIncomplete(
                    f"the recording was cut short after {len(recording.chunks)} chunks"
                )
            elif end.error is not None:
                raise end.error
        finally:
            unlisten()


class _Timing:
    """When the chunks of one stream are due."""

    __slots__ = ("_loop", "_speed", "_start", "_waiter")

    def __init__(self, loop: asyncio.AbstractEventLoop, speed: float) -> None:
        self._loop = loop
        self._speed = speed
        self._start = loop.time()
        self._waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Wait no longer."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self, time_ms: float, context: RequestContext) -> None:
        """Wait until a recorded time, or until the request is stopped."""
        if context.is_stopped:
            return
        if self._speed == math.inf:
            await asyncio.sleep(0)
            return
        due = self._start + time_ms / 1000.0 / self._speed
        if due <= self._loop.time():
            return
        self._waiter = self._loop.create_future()
        timer = self._loop.call_at(due, self.wake)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None


def _fresh(chunk: LLMEngineOutput) -> LLMEngineOutput:
    """Return a chunk of one's own: whoever gets it may change it."""
    plain = LLMEngineOutput(chunk.token_ids[:])
    return plain if plain == chunk else copy.deepcopy(chunk)


def _cancelled(request: PreprocessedRequest, made: int) -> LLMEngineOutput:
    return LLMEngineOutput.cancelled().with_usage(usage(len(request.token_ids), made))


def _shut_down() -> EngineShutdown:
    return EngineShutdown("the engine was cleaned up")
