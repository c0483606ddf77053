"""An answer's readers in other processes."""

from __future__ import annotations

import asyncio
from typing import Any

from operators import SharedStream
from operators.authoring import ReaderMark

__all__ = ("RemoteReaders",)


class RemoteReaders:
    """
    A mark in the shared stream for the fastest reader of each other process.

    A reader elsewhere may be ahead of the shared stream here; its mark follows as items are pulled.
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
        """Record that the fastest reader of *process* is at *position*."""
        self._positions[process] = position
        self._move(process)

    def left(self, process: str) -> None:
        """Record that *process* has no readers any more. Idempotent."""
        self._positions.pop(process, None)
        mark = self._marks.pop(process, None)
        if mark is not None:
            mark.close()

    def item_taken(self) -> None:
        """Move marks that are ahead, once the shared stream has the item."""
        if self._marks:
            asyncio.get_running_loop().call_soon(self.catch_up)

    def catch_up(self) -> None:
        """Move all marks to their readers' positions."""
        for process in self._positions:
            self._move(process)

    def _move(self, process: str) -> None:
        shared = self._shared
        if shared is None or shared.is_over:
            return
        position = min(self._positions[process], shared.head)
        mark = self._marks.get(process)
        if mark is None or position < mark.position:
            # The fastest reader has left, and a slower one is now the fastest.
            self._marks[process] = shared.mark(position)
            if mark is not None:
                mark.close()
        elif position > mark.position:
            mark.advance(position)

    def close(self) -> None:
        """Remove all marks."""
        for process in list(self._positions):
            self.left(process)
