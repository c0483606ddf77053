"""The recording of one stream while it runs."""

from __future__ import annotations

import time
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar, cast
from urllib.parse import quote

from operators.assembly import OpenAnswers
from operators.authoring import Clock
from rx_backend.errors import Unknown, as_backend_error
from rx_backend.logger import describe, get_logger
from rx_backend.protocols import Annotated, LLMEngineOutput, convert_output
from rx_backend.recording.format import append_chunk, ending_line, header_line
from rx_backend.recording.model import Ending, Recording

__all__ = ("StreamRecorder",)

T = TypeVar("T")

_BUFFER_BYTES: Final = 8192
"""Lines are buffered up to this size before the file is opened, written to and closed."""

_MAX_NAME: Final = 120

_log = get_logger(__name__)


class StreamRecorder:
    """
    Records a stream's items and its end without ever disturbing it: a failure is logged once.

    Items are encoded at once, since later operators may change them. The file is open only while
    the buffered lines are written, so thousands of streams hold no file descriptors.

    Args:
        folder: The directory of the file.
        request: The request's data, as a recording without chunks.
        clock: Monotonic clock, in seconds; the stream starts now.
        answers: How many answers the request has.
    """

    def __init__(
        self, folder: str | PathLike[str], request: Recording, clock: Clock, answers: int
    ) -> None:
        self._folder = folder
        self._request_id = request.request_id
        self._clock = clock
        self._buffer = bytearray()
        self._path: Path | None = None
        self._answers = OpenAnswers(answers)
        self._error: Ending | None = None
        self._failed = False
        try:
            self._buffer += header_line(request)
        except Exception as error:
            self._give_up(error)
        self._start = clock()

    def record_item(self, item: T) -> T:
        """Record an item (a chunk, a mapping of its shape, or an ``Annotated``), and return it."""
        if self._failed:
            return item
        try:
            chunk = self._chunk_of(item)
            if chunk is not None:
                append_chunk(self._buffer, self._now_ms(), chunk)
                if chunk.finish_reason is not None:
                    self._answers.end(chunk.index or 0)
            if len(self._buffer) >= _BUFFER_BYTES:
                self._write()
        except Exception as error:
            self._give_up(error)
        return item

    def complete(self, failure: Exception | None, dropped: bool) -> None:
        """Record the end of the stream, and complete the file."""
        try:
            if not self._failed:
                self._buffer += ending_line(self._ending(failure, dropped))
            if self._buffer:
                self._write()
        except Exception as error:
            self._give_up(error)

    def _now_ms(self) -> float:
        # To the microsecond: finer digits are noise, and would differ in each replay.
        return int((self._clock() - self._start) * 1e6 + 0.5) / 1000.0

    def _chunk_of(self, item: object) -> LLMEngineOutput | None:
        if not isinstance(item, Annotated):
            return convert_output(cast("Any", item))
        envelope = cast("Annotated[Any]", item)
        if envelope.data is not None:
            return convert_output(envelope.data)
        if envelope.is_error:
            # After annotate_errors, a stream fails with an item.
            error = envelope.error or Unknown("; ".join(envelope.comment or ()))
            self._error = self._failure(error)
        return None

    def _ending(self, failure: Exception | None, dropped: bool) -> Ending:
        if failure is not None:
            return self._failure(failure)
        if self._error is not None:
            return self._error
        # Before the operator that ends the stream at its last terminal, a clean end is a drop.
        left = dropped and not self._answers.are_over
        return Ending(self._now_ms(), "dropped" if left else "completed")

    def _failure(self, error: Exception) -> Ending:
        typed = as_backend_error(error)
        return Ending(self._now_ms(), "error", typed.kind, typed.message)

    def _write(self) -> None:
        if self._path is None:
            with _create_file(self._folder, self._request_id) as file:
                self._path = Path(file.name)
                file.write(self._buffer)
        else:
            # Not for appending: a removed file must not reappear without its header.
            with self._path.open("r+b") as file:
                file.seek(0, 2)
                file.write(self._buffer)
        self._buffer.clear()

    def _give_up(self, error: Exception) -> None:
        if not isinstance(error, OSError):
            # What could be encoded is still written at the end.
            del self._buffer[self._buffer.rfind(b"\n") + 1 :]
        else:
            self._buffer.clear()
            with suppress(OSError):
                if self._path is not None and not self._path.stat().st_size:
                    self._path.unlink()
        if not self._failed:
            self._failed = True
            path = str(self._path or self._folder)
            _log.warning(
                "recording failed", request_id=self._request_id, path=path, **describe(error)
            )


def _create_file(folder: str | PathLike[str], request_id: str | None) -> BinaryIO:
    """
    Create ``<request id>.jsonl``, or ``<request id>_<time in ns>.jsonl`` if that exists.

    Creation is exclusive: no two streams share a file, even across processes. The files of one
    request sort by the time of their creation.

    Args:
        folder: The directory; created when needed.
        request_id: Characters that don't belong in a file name are escaped as in a URL, and a long
            id is cut. None for ``stream``.

    Returns:
        The file, open for writing; its ``name`` is the path.

    Raises:
        OSError: It can't be created.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    name = quote(request_id or "stream", safe=" @+,=", errors="replace")[:_MAX_NAME]
    path = Path(folder, f"{name}.jsonl")
    while True:
        try:
            return cast("BinaryIO", path.open("xb"))
        except FileExistsError:
            path = Path(folder, f"{name}_{time.time_ns()}.jsonl")
