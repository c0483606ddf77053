"""The validated options of resumable streams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from rx_backend.checks import function, integer, number
from rx_backend.errors import InvalidArgument

__all__ = ("MayRead", "Options", "WhenAbandoned", "same_owner")

WhenAbandoned: TypeAlias = Literal["stop", "continue"]
"""What becomes of an answer that all readers have left."""

MayRead: TypeAlias = Callable[[str | None, str | None], bool]
"""Takes a stream's owner and the caller; returns whether the caller may read and stop it."""


def same_owner(owner: str | None, caller: str | None) -> bool:
    """
    Return whether the caller is the owner of the stream.

    A stream without an owner may be read by any caller without an owner who knows its id.
    """
    return owner == caller


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """
    The limits of :class:`ResumableStreams`, which documents them.

    Raises:
        InvalidArgument: One is invalid; names it.
    """

    max_streams: int
    max_ahead: int
    max_bytes: int
    linger_s: float
    when_abandoned: WhenAbandoned
    stop_grace_s: float
    keep_s: float
    may_read: MayRead

    def __post_init__(self) -> None:
        integer("max_streams", self.max_streams, unit="streams", low=1)
        integer("max_ahead", self.max_ahead, unit="items", low=0)
        integer("max_bytes", self.max_bytes, unit="bytes", low=1)
        for name in ("linger_s", "stop_grace_s", "keep_s"):
            number(name, getattr(self, name), low=0, unit="seconds")
        if self.when_abandoned not in get_args(WhenAbandoned):
            raise InvalidArgument(
                f"when_abandoned: expected 'stop' or 'continue', got {self.when_abandoned!r}"
            )
        function("may_read", self.may_read)

    def allows(self, owner: str | None, caller: str | None) -> bool:
        """
        Return whether *caller* may read a stream of *owner*.

        Raises:
            TypeError: ``may_read`` returned something other than True or False.
        """
        answer: object = self.may_read(owner, caller)
        if answer is True or answer is False:
            return answer
        raise TypeError(f"may_read: expected True or False, got {type(answer).__name__}")
