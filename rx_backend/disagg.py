"""The role of a worker in disaggregated serving."""

from __future__ import annotations

from enum import StrEnum

from rx_backend.errors import InvalidArgument

__all__ = ("DisaggregationMode",)


class DisaggregationMode(StrEnum):
    """
    A worker's part in a request; the values are those on the span (row P2).

    Attributes:
        is_prefill: Whether the worker computes the prompt for a decode peer (row T4).
        is_decode: Whether the worker continues a prefill peer's request (row A4).

    >>> DisaggregationMode.parse("decode").is_decode
    True
    """

    AGGREGATED = "agg"
    PREFILL = "prefill"
    DECODE = "decode"

    is_prefill: bool
    is_decode: bool

    def __init__(self, value: str) -> None:
        # Plain attributes, since each request reads them several times.
        self.is_prefill = value == "prefill"
        self.is_decode = value == "decode"

    @classmethod
    def parse(cls, value: str) -> DisaggregationMode:
        """
        Return the mode that *value* names: ``agg``, ``prefill`` or ``decode``.

        Raises:
            InvalidArgument: It names no mode; the message lists them.
        """
        try:
            return cls(value)
        except ValueError:
            valid = ", ".join(cls)
            raise InvalidArgument(f"mode: expected one of {valid}, got {value!r}") from None
