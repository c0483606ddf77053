"""One stream's recording while it is made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from operators.authoring import Clock
from rx_backend.errors import BackendError, Unknown, as_backend_error
from rx_backend.logger import describe, get_logger
from rx_backend.protocols import Annotated, LLMEngineOutput
from rx_backend.recording.format import append_chunk, ending_line, header_line
from rx_backend.recording.model import Ending, RecordedRequest
from rx_backend.recording.place import Place

__all__ = ("Tape",)

T = TypeVar("T")

_log = get_logger(__name__)


class Tape:
    """
    Takes down a stream's items and its end, and never disturbs it: what fails here is logged once.

    Lines gather in memory, as a chunk may be changed by those who get it later. The file is open
    only while they are written: thousands of streams hold no file descriptors.

    Args:
        request: What is known of the request.
        place: Where the file goes.
        clock: Monotonic clock, in seconds; the stream starts now.
        buffer_bytes: With so many bytes gathered they are written.
    """

    __slots__ = (
        "_buffer",
        "_buffer_bytes",
        "_clock",
        "_error",
        "_failed",
        "_has_terminal",
        "_path",
        "_place",
        "_request_id",
        "_start",
    )

    def __init__(
        self, request: RecordedRequest, place: Place, clock: Clock, buffer_bytes: int
    ) -> None:
        self._request_id = request.request_id
        self._place = place
        self._clock = clock
        self._buffer_bytes = buffer_bytes
        self._buffer = bytearray(header_line(request))
        self._path: Path | None = None
        self._has_terminal = False
        self._failed = False
        self._error: Ending | None = None
        self._start = clock()

    def note(self, item: T) -> T:
        """Take down an item that passes: a chunk, a mapping of its shape, or an ``Annotated``."""
        if self._failed:
            return item
        try:
            chunk = cast("object", item)
            if isinstance(chunk, Annotated):
                chunk = cast("Annotated[object]", chunk).data
            if isinstance(chunk, LLMEngineOutput):
                append_chunk(self._buffer, self._now_ms(), chunk)
                if chunk.finish_reason is not None:
                    self._has_terminal = True
            else:
                self._note_other(item, chunk)
            if len(self._buffer) >= self._buffer_bytes:
                self._write()
        except Exception as error:
            self._give_up(error)
        return item

    def end(self, failure: Exception | None, dropped: bool) -> None:
        """Take down the end, and complete the file."""
        try:
            if not self._failed:
                self._buffer += ending_line(self._ending(failure, dropped))
            if self._buffer:
                self._write()
        except Exception as error:
            self._give_up(error)
        finally:
            if self._path is not None:
                self._place.release(self._path)

    def _now_ms(self) -> float:
        # To the microsecond: finer digits are noise, and would differ in each replay.
        return int((self._clock() - self._start) * 1e6 + 0.5) / 1000.0

    def _note_other(self, item: Any, chunk: object) -> None:
        if isinstance(chunk, Mapping):
            fields = cast("Mapping[str, Any]", chunk)
            append_chunk(self._buffer, self._now_ms(), fields)
            if fields.get("finish_reason") is not None:
                self._has_terminal = True
        elif not isinstance(item, Annotated):
            raise TypeError(f"expected chunks, got {type(item).__name__}")
        elif item.is_error:
            # Behind annotate_errors, this is how a stream fails.
            error: BackendError = item.error or Unknown("; ".join(item.comment or ()))
            self._error = Ending(self._now_ms(), "error", *_told(error))

    def _ending(self, failure: Exception | None, dropped: bool) -> Ending:
        if failure is not None:
            return Ending(self._now_ms(), "error", *_told(failure))
        if self._error is not None:
            return self._error
        # In front of the operator that ends the stream by its terminal, a clean end is a drop.
        left = dropped and not self._has_terminal
        return Ending(self._now_ms(), "dropped" if left else "completed")

    def _write(self) -> None:
        if self._path is None:
            with self._place.create() as file:
                self._path = Path(file.name)
                file.write(self._buffer)
        else:
            # Not for appending: a file that was taken away must not come back without its header.
            with self._path.open("r+b") as file:
                file.seek(0, 2)
                file.write(self._buffer)
        self._buffer.clear()

    def _give_up(self, error: Exception) -> None:
        if isinstance(error, OSError):
            self._buffer.clear()
        else:
            # What could be encoded is still written at the end.
            del self._buffer[self._buffer.rfind(b"\n") + 1 :]
        if self._failed:
            return
        self._failed = True
        _log.warning(
            "recording failed",
            request_id=self._request_id,
            path=str(self._path or self._place),
            **describe(error),
        )


def _told(error: Exception) -> tuple[str, str]:
    typed = as_backend_error(error)
    return typed.kind, typed.message
