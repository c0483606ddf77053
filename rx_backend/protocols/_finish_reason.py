"""Why a stream ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Final, NoReturn, cast

from rx_backend.errors import InvalidArgument

__all__ = ("FinishReason",)

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


class FinishReason:
    """
    Why a stream ended: immutable, hashable, equal by value.

    Use the constants, `error` and `parse`.

    Attributes:
        kind: ``eos``, ``stop``, ``length``, ``cancelled``, ``content_filter`` or ``error``.
        message: What went wrong; only for ``error``, else None.

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
            raise InvalidArgument(f"finish_reason: a message goes with error alone, got {kind!r}")
        if kind != "error" and kind not in _SPAN_VALUES:
            raise InvalidArgument(f"finish_reason: expected {_EXPECTED}, got {kind!r}")
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "message", message)

    @classmethod
    def error(cls, message: str) -> FinishReason:
        """Return the reason of a run that failed, with what went wrong."""
        return cls("error", message)

    @classmethod
    def parse(cls, value: str | Mapping[str, Any] | FinishReason) -> FinishReason:
        """
        Read a finish reason as engines and the wire write it.

        Args:
            value: A kind; ``abort``, which means cancelled; ``error: <message>``; a mapping with
                the one key ``error``; or a finish reason, which is returned as it is.

        Raises:
            InvalidArgument: Anything else; the message names ``finish_reason``.
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

    def __copy__(self) -> FinishReason:
        return self

    def __deepcopy__(self, _memo: object) -> FinishReason:
        return self


FinishReason.EOS = FinishReason("eos")
FinishReason.STOP = FinishReason("stop")
FinishReason.LENGTH = FinishReason("length")
FinishReason.CANCELLED = FinishReason("cancelled")
FinishReason.CONTENT_FILTER = FinishReason("content_filter")

_BY_TEXT: Final = {
    "eos": FinishReason.EOS,
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "cancelled": FinishReason.CANCELLED,
    "abort": FinishReason.CANCELLED,
    "content_filter": FinishReason.CONTENT_FILTER,
}


def parse_finish_reason(value: object) -> FinishReason:
    """Read a finish reason; the ``ValueError`` says what was expected, not where."""
    if isinstance(value, str):
        if reason := _BY_TEXT.get(value):
            return reason
        if value.startswith("error: "):
            return FinishReason.error(value.removeprefix("error: "))
    elif isinstance(value, FinishReason):
        return value
    elif isinstance(value, Mapping):
        entries = cast("Mapping[object, object]", value)
        message = entries.get("error")
        if len(entries) == 1 and isinstance(message, str):
            return FinishReason.error(message)
    raise ValueError(f"expected {_EXPECTED}, got {_short(cast('object', value))}")


def _short(value: object) -> str:
    """Quote what came, but not the whole of it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
