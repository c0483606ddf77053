"""How far a replay is: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TextIO

from rx_backend.replay.figures import ReplayResult

__all__ = ("progress",)

_BAR_EVERY_S = 0.1
_LINE_EVERY_S = 2.0


@contextmanager
def progress(
    total: int, out: TextIO, *, clock: Callable[[], float] = time.monotonic
) -> Generator[Callable[[ReplayResult], None]]:
    """
    Show how far a replay is while the block runs.

    Args:
        total: Requests in the workload.
        out: Where to; a terminal gets a bar when `rich` is installed.
        clock: Real time in seconds: how often something is shown.

    Yields:
        The function to call with the result so far, as often as one likes.
    """
    bar = _bar(total, out) if out.isatty() else None
    if bar is None:
        yield _every(
            _LINE_EVERY_S, clock, lambda result: print(_line(result), file=out, flush=True)
        )
        return
    show, close = bar
    try:
        yield _every(_BAR_EVERY_S, clock, show)
    finally:
        close()


def _line(result: ReplayResult) -> str:
    return (
        f"{len(result.requests):,} of {result.planned:,} requests, {result.tokens:,} tokens, "
        f"{result.running:,} in flight at {result.duration_s:,.0f} s"
    )


def _every(
    pause_s: float, clock: Callable[[], float], show: Callable[[ReplayResult], None]
) -> Callable[[ReplayResult], None]:
    due = clock() + pause_s

    def update(result: ReplayResult) -> None:
        nonlocal due
        now = clock()
        if now >= due:
            due = now + pause_s
            show(result)

    return update


def _bar(
    total: int, out: TextIO
) -> tuple[Callable[[ReplayResult], None], Callable[[], None]] | None:
    try:
        from rich.console import Console  # noqa: PLC0415  # an extra
        from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415  # an extra
    except ImportError:
        return None
    live = Progress(
        BarColumn(),
        TextColumn("{task.description}"),
        console=Console(file=out),
        transient=True,
    )
    task = live.add_task("starting", total=total)
    live.start()

    def show(result: ReplayResult) -> None:
        live.update(task, completed=len(result.requests), description=_line(result))

    return show, live.stop
