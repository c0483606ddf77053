"""The state shared by the answers of one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rx_backend.adapter import EngineAdapter
from rx_backend.resumable.jetstream._entries import Item
from rx_backend.resumable.jetstream._link import Link
from rx_backend.resumable.jetstream._options import Options
from rx_backend.resumable.jetstream._peers import Peers

__all__ = ("Site",)


@dataclass(frozen=True, slots=True)
class Site:
    """
    The state shared by all answers of one process.

    Attributes:
        adapter: Produces answers.
        link: The connection to NATS.
        peers: The other processes.
        options: The options of the source.
        ended: Called with the subject of an answer that this process has written to its end.
    """

    adapter: EngineAdapter[Item]
    link: Link
    peers: Peers
    options: Options
    ended: Callable[[str], None]
