"""The reason why a stream ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Final, NoReturn, cast

from rx_backend.errors import InvalidArgument
from rx_backend.logger import get_logger

__all__ = ("FinishReason", "parse_finish_reason", "read_finish_word")

_SPAN_VALUES: Final = {
    "eos": "EoS",
    "stop": "Stop",
    "length": "Length",
    "cancelled": "Cancelled",
    "content_filter": "ContentFilter",
}
_EXPECTED: Final = (
    'one of "eos", "stop", "length", "cancelled", "abort", "content_filter", "error: <message>" '
    'or {"error": "<message>"}'
)
_STOCK_MESSAGE: Final = "the engine reported an error without a message"
_MOST_WARNINGS: Final = 100


class FinishReason:
    """
    The reason why a stream ended: immutable, hashable, equal by value.

    Get one from the constants, `error` and `parse`.

    Attributes:
        kind: ``eos``, ``stop``, ``length``, ``cancelled``, ``content_filter`` or ``error``.
        message: The error's message; None for all other kinds.

    >>> FinishReason.parse("abort")
    FinishReason.CANCELLED
    >>> FinishReason.error("boom").to_json()
    {'error': 'boom'}
    """

    __slots__ = ("kind", "message")

    EOS: ClassVar[FinishReason]
    STOP: ClassVar[FinishReason]
    LENGTH: ClassVar[FinishReason]
    CANCELLED: ClassVar[FinishReason]
    CONTENT_FILTER: ClassVar[FinishReason]

    kind: str
    message: str | None

    def __init__(self, kind: str, message: str | None = None) -> None:
        if (kind == "error") is (message is None):
            raise InvalidArgument(f"finish_reason: only error has a message, got {kind!r}")
        if kind != "error" and kind not in _SPAN_VALUES:
            raise InvalidArgument(f"finish_reason: expected {_EXPECTED}, got {kind!r}")
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "message", message)

    @classmethod
    def error(cls, message: str) -> FinishReason:
        """Return the reason of a run that failed with *message*."""
        return cls("error", message)

    @classmethod
    def parse(cls, value: str | Mapping[str, Any] | FinishReason) -> FinishReason:
        """
        Parse a finish reason in the form of engines or the wire.

        Args:
            value: A kind; ``abort`` (cancelled); ``model_length`` or ``max_tokens`` (length);
                ``error`` or ``error: <message>``; any other word (stop); a mapping with the single
                key ``error``; or a finish reason, which is returned unchanged.

        Raises:
            InvalidArgument: *value* has another type; the message names ``finish_reason``.

        >>> FinishReason.parse("max_tokens"), FinishReason.parse("tool_calls")
        (FinishReason.LENGTH, FinishReason.STOP)
        """
        try:
            return parse_finish_reason(value)
        except ValueError as exc:
            raise InvalidArgument(f"finish_reason: {exc}") from None

    @property
    def is_error(self) -> bool:
        """Whether the run failed."""
        return self.kind == "error"

    @property
    def span_value(self) -> str:
        """The value on the span: ``Stop``, ``EoS``, ``Error("boom")`` and so on (row P3)."""
        if self.message is None:
            return _SPAN_VALUES[self.kind]
        return f"Error({json.dumps(self.message, ensure_ascii=False)})"

    def to_json(self) -> str | dict[str, str]:
        """Return the wire form: the kind, or ``{"error": message}``."""
        return self.kind if self.message is None else {"error": self.message}

    def __eq__(self, other: object) -> bool:
        if isinstance(other, FinishReason):
            return self.kind == other.kind and self.message == other.message
        return NotImplemented

    def __hash__(self) -> int:
        return hash((self.kind, self.message))

    def __repr__(self) -> str:
        if self.message is None:
            return f"FinishReason.{self.kind.upper()}"
        return f"FinishReason.error({self.message!r})"

    def __str__(self) -> str:
        return self.kind if self.message is None else f"error: {self.message}"

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"FinishReason is immutable, cannot set {name}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"FinishReason is immutable, cannot delete {name}")

    def __reduce__(self) -> tuple[Any, ...]:
        return parse_finish_reason, (self.to_json(),)


FinishReason.EOS = FinishReason("eos")
FinishReason.STOP = FinishReason("stop")
FinishReason.LENGTH = FinishReason("length")
FinishReason.CANCELLED = FinishReason("cancelled")
FinishReason.CONTENT_FILTER = FinishReason("content_filter")

_BY_WORD: Final = {
    "eos": FinishReason.EOS,
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "model_length": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
    "cancelled": FinishReason.CANCELLED,
    "abort": FinishReason.CANCELLED,
    "content_filter": FinishReason.CONTENT_FILTER,
    "error": FinishReason.error(_STOCK_MESSAGE),
}


def parse_finish_reason(value: object) -> FinishReason:
    """Parse a finish reason; the ``ValueError`` says what was expected, but not where."""
    if isinstance(value, str):
        return read_finish_word(value)[0]
    if isinstance(value, FinishReason):
        return value
    if isinstance(value, Mapping):
        entries = cast("Mapping[object, object]", value)
        message = entries.get("error")
        if len(entries) == 1 and isinstance(message, str):
            return FinishReason.error(message)
    raise ValueError(f"expected {_EXPECTED}, got {_short(cast('object', value))}")


def read_finish_word(text: str) -> tuple[FinishReason, str | None]:
    """
    Return the reason for *text*, and *text* itself if it is unknown, which means `STOP`.

    An unknown word is logged once per process, up to 100 words.
    """
    if reason := _BY_WORD.get(text):
        return reason, None
    if text.startswith("error:"):
        return FinishReason.error(text.removeprefix("error:").removeprefix(" ")), None
    _warn_once(text[:60])
    return FinishReason.STOP, str.__str__(text)


_log = get_logger(__name__)
_warned: dict[str, object] = {}


def _warn_once(word: str) -> None:
    mine = object()
    # `setdefault` is atomic: only one of several threads finds its own object.
    if len(_warned) < _MOST_WARNINGS and _warned.setdefault(word, mine) is mine:
        _log.warning("unknown finish_reason from the engine, treated as stop", finish_reason=word)


def _short(value: object) -> str:
    """Return the value for a message, at most 60 characters of it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
