"""The readers that an answer has in other processes."""

from __future__ import annotations

import asyncio
from typing import Any

from operators import SharedStream
from operators.authoring import ReaderMark

__all__ = ("RemoteReaders",)


class RemoteReaders:
    """
    A mark in the shared stream for the fastest reader of each other process.

    A reader elsewhere may have items that were not yet taken here; its mark is moved as they are.
    """

    def __init__(self) -> None:
        self._shared: SharedStream[Any] | None = None
        self._positions: dict[str, int] = {}
        self._marks: dict[str, ReaderMark] = {}

    def watch(self, shared: SharedStream[Any]) -> None:
        """Mark the readers in *shared* from now on."""
        self._shared = shared
        self.catch_up()

    def moved(self, process: str, position: int) -> None:
        """Note that the fastest reader of *process* is at *position*."""
        self._positions[process] = position
        self._move(process)

    def left(self, process: str) -> None:
        """Note that *process* has no reader any more. Idempotent."""
        self._positions.pop(process, None)
        mark = self._marks.pop(process, None)
        if mark is not None:
            mark.close()

    def item_taken(self) -> None:
        """Move the marks that wait for an item, once the shared stream has it."""
        if self._marks:
            asyncio.get_running_loop().call_soon(self.catch_up)

    def catch_up(self) -> None:
        """Move all marks to where their readers are."""
        for process in self._positions:
            self._move(process)

    def _move(self, process: str) -> None:
        shared = self._shared
        if shared is None or shared.is_over:
            return
        position = min(self._positions[process], shared.head)
        mark = self._marks.get(process)
        if mark is None or position < mark.position:
            # The fastest one has left, and a slower one is the fastest now.
            self._marks[process] = shared.mark(position)
            if mark is not None:
                mark.close()
        elif position > mark.position:
            mark.advance(position)

    def close(self) -> None:
        """Take away all marks."""
        for process in list(self._positions):
            self.left(process)
