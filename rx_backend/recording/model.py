"""The content of a recording."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from rx_backend.errors import KINDS, BackendError, Unknown
from rx_backend.protocols import LLMEngineOutput

__all__ = ("Ending", "Recording", "TimeMs", "TimedChunk")

TimeMs = Annotated[float, Meta(ge=0)]
"""A time since the stream's start, in ms."""

_Count = Annotated[int, Meta(ge=0)]
_TokenId = Annotated[int, Meta(ge=0, le=2**32 - 1)]


class TimedChunk(Struct):
    """
    A chunk and its arrival time.

    Attributes:
        time_ms: Time since the stream's start, in ms; recorded to the microsecond.
        chunk: The chunk.
    """

    time_ms: float
    chunk: LLMEngineOutput


class Ending(Struct, frozen=True, omit_defaults=True, repr_omit_defaults=True):
    """
    How and when a stream ended.

    Attributes:
        time_ms: Time since the stream's start, in ms.
        outcome: ``completed``: with its terminal, or by itself without one. ``error``: it failed.
            ``dropped``: its consumer closed it before the terminal.
        error_kind: For ``error``, the kind of the typed error, such as ``Disconnected``.
        message: For ``error``, its message.
    """

    time_ms: TimeMs
    outcome: Literal["completed", "error", "dropped"] = field(name="end")
    error_kind: str | None = None
    message: str | None = None

    @property
    def error(self) -> BackendError | None:
        """A new typed error if the stream failed, ``Unknown`` for an unknown kind; else None."""
        if self.outcome != "error":
            return None
        return KINDS.get(self.error_kind or "", Unknown)(self.message or "")


class Recording(Struct, kw_only=True, repr_omit_defaults=True):
    """
    One recorded stream, with data of its request (None if unknown).

    Attributes:
        request_id: The request's id.
        model: The requested model.
        mode: The worker's role: ``agg``, ``prefill`` or ``decode``.
        prompt_tokens: Length of the prompt, in tokens.
        prompt_token_ids: The prompt itself, if it was recorded.
        chunks: The stream's chunks, in order.
        end: Its end; None if the recording is incomplete, because the process was killed or writing
            failed.

    >>> from rx_backend import LLMEngineOutput
    >>> recording = Recording(chunks=[TimedChunk(15.5, LLMEngineOutput.token(7))])
    >>> recording.token_ids, recording.end
    ([7], None)
    """

    request_id: str | None = None
    model: str | None = None
    mode: str | None = None
    prompt_tokens: _Count | None = None
    prompt_token_ids: list[_TokenId] | None = None
    chunks: list[TimedChunk] = field(default_factory=list[TimedChunk])
    end: Ending | None = None

    @property
    def token_ids(self) -> list[int]:
        """All tokens, in order."""
        return [token for timed in self.chunks for token in timed.chunk.token_ids]
