"""An engine that replays recordings."""

from __future__ import annotations

import asyncio
import copy
import math
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable
from contextlib import suppress
from itertools import cycle
from os import PathLike
from typing import Final

from rx_backend.checks import number, text
from rx_backend.context import RequestContext
from rx_backend.engine import EngineConfig, LLMEngine
from rx_backend.engines.answer_progress import AnswerProgress
from rx_backend.errors import EngineShutdown, InvalidArgument, StreamIncomplete
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest
from rx_backend.recording.files import read_recordings
from rx_backend.recording.model import Recording

__all__ = ("ReplayEngine",)

_EXPECTED: Final = "recordings: expected a path, or a list of recordings"


class ReplayEngine(LLMEngine):
    """
    Replays recordings, with the same chunks, gaps and end.

    Each chunk is due at its recorded time after `generate` was called, divided by *speed*, so times
    don't drift. A late consumer gets overdue chunks at once.

    A request replays the recordings with its own id (``context.id``) in turn, or if there are none,
    all recordings in turn.

    How a stream ends:

    - completed: as recorded, usually with its terminal.
    - error: the typed error is raised at its recorded time, with its kind and message.
    - dropped: the rest is unknown, so each open answer gets a `cancelled` terminal.
    - incomplete recording: `StreamIncomplete` after the last chunk.
    - stopped: a stop of the replaying request ends each open answer at once with a `cancelled`
      terminal and the usage so far (rows E3, E4), whatever was recorded.

    Args:
        recordings: A directory or a file for `read_recordings`, or recordings.
        speed: Factor on the recorded speed; ``math.inf`` for no waiting, although the loop's other
            tasks run between chunks.
        model: Model name to announce; the first recording's by default.

    Raises:
        RecordingError: A file is invalid; the message names file, line and what was expected.
        InvalidArgument: There is no recording, an element is not a recording, or *speed* is not
            above 0.
    """

    def __init__(
        self,
        recordings: str | PathLike[str] | Iterable[Recording],
        speed: float = 1.0,
        *,
        model: str | None = None,
    ) -> None:
        if isinstance(recordings, str | PathLike):
            recordings = read_recordings(recordings)
        try:
            self.recordings = tuple(recordings)
        except TypeError as error:
            raise InvalidArgument(f"{_EXPECTED}: {error}") from error
        for each in self.recordings:
            if not isinstance(each, Recording):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InvalidArgument(f"{_EXPECTED}, got a {type(each).__name__} in it")
        if not self.recordings:
            raise InvalidArgument("recordings: expected at least one, got none")
        self._speed = speed if speed == math.inf else number("speed", speed, low=0, above=True)
        named = (recording.model for recording in self.recordings if recording.model)
        self._model = next(named, "replay") if model is None else text("model", model)
        by_id: dict[str | None, list[Recording]] = defaultdict(list)
        for recording in self.recordings:
            by_id[recording.request_id].append(recording)
        self._by_id = {request_id: cycle(same) for request_id, same in by_id.items()}
        self._in_turn = cycle(self.recordings)
        self._shut = False

    async def start(self, worker_id: int) -> EngineConfig:
        """Return the model name; nothing is loaded."""
        self._shut = False
        return EngineConfig(model=self._model)

    def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        """
        Return the stream of the recording for *context*; its time starts now.

        Raises:
            EngineShutdown: The engine was cleaned up.
        """
        self._check_open()
        recording = next(self._by_id.get(context.id, self._in_turn))
        return self._play(recording, request, context, asyncio.get_running_loop().time())

    async def cleanup(self) -> None:
        """Fail the open streams with `EngineShutdown` at their next chunk (row E5)."""
        self._shut = True

    async def _play(
        self,
        recording: Recording,
        request: PreprocessedRequest,
        context: RequestContext,
        start: float,
    ) -> AsyncGenerator[LLMEngineOutput]:
        played = AnswerProgress(request)
        for timed in recording.chunks:
            await self._wait_until(start, timed.time_ms, context)
            if context.is_stopped:
                break
            played.add(timed.chunk)
            yield _fresh(timed.chunk)
        end = recording.end
        if end is not None:
            await self._wait_until(start, end.time_ms, context)
        if context.is_stopped or (end is not None and end.outcome == "dropped"):
            for terminal in played.cancelled():
                yield terminal
        elif end is not None and end.error is not None:
            raise end.error
        elif end is None and played.open:
            count = len(recording.chunks)
            raise StreamIncomplete(f"the recording is incomplete: it ends after {count} chunks")

    async def _wait_until(self, start: float, time_ms: float, context: RequestContext) -> None:
        """Wait until a recorded time, or until the request is stopped."""
        if self._speed == math.inf:
            await asyncio.sleep(0)
        elif (due := start + time_ms / 1000.0 / self._speed) > asyncio.get_running_loop().time():
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await context.stopped()
        self._check_open()

    def _check_open(self) -> None:
        if self._shut:
            raise EngineShutdown("the engine was cleaned up")


def _fresh(chunk: LLMEngineOutput) -> LLMEngineOutput:
    """Return a copy of *chunk*: its consumer may change it."""
    plain = LLMEngineOutput(chunk.token_ids[:])
    return plain if plain == chunk else copy.deepcopy(chunk)
