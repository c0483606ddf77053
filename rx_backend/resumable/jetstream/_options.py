"""The validated options of :class:`JetStreamSource`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from rx_backend.checks import integer, number
from rx_backend.errors import InvalidArgument

__all__ = ("Options",)

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
# Set by this library itself.
_OWN_CONNECT_OPTIONS: Final = {
    "servers",
    "allow_reconnect",
    "max_reconnect_attempts",
    "error_cb",
    "disconnected_cb",
    "reconnected_cb",
    "closed_cb",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """
    The options of :class:`JetStreamSource`, which documents them.

    Raises:
        InvalidArgument: One is invalid; names it.
    """

    name: str
    replicas: int
    max_age_s: float
    max_bytes: int
    lease_s: float
    keep_s: float
    max_takeovers: int
    batch_items: int
    timeout_s: float
    connect: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgument(
                f"name: expected letters, digits, '_' and '-', at most 64, got {self.name!r}"
            )
        integer("replicas", self.replicas, unit="servers", low=1, high=5)
        integer("max_bytes", self.max_bytes, unit="bytes", low=1)
        integer("max_takeovers", self.max_takeovers, unit="times", low=0)
        integer("batch_items", self.batch_items, unit="items", low=1)
        number("max_age_s", self.max_age_s, low=1.0, unit="seconds")
        number("lease_s", self.lease_s, low=0.2, unit="seconds")
        number("keep_s", self.keep_s, low=0, unit="seconds")
        number("timeout_s", self.timeout_s, low=0.1, unit="seconds")
        if not isinstance(self.connect, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgument(f"connect: expected a mapping of options, got {self.connect!r}")
        own = sorted(_OWN_CONNECT_OPTIONS & set(self.connect))
        if own:
            raise InvalidArgument(
                f"connect: {', '.join(own)}: can't be given, JetStreamSource sets it"
            )

    def subject(self, id: str) -> str | None:
        """Return the subject of an answer; None if *id* is invalid."""
        return f"{self.name}.{id}" if _ID.fullmatch(id) else None

    def process_subject(self, process: str) -> str:
        """Return the subject on which a process receives messages from others."""
        return f"{self.name}-processes.{process}"
