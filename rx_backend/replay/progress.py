"""The progress of a replay: a live bar on a terminal, otherwise occasional lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TextIO

from rx_backend.replay.figures import ReplayResult

__all__ = ("progress",)

_BAR_EVERY_S = 0.1
_LINE_EVERY_S = 2.0


@contextmanager
def progress(
    out: TextIO, *, clock: Callable[[], float] = time.monotonic
) -> Generator[Callable[[ReplayResult], None]]:
    """
    Show the progress of a replay while the block runs.

    Args:
        out: The output; a terminal gets a bar if `rich` is installed.
        clock: Real time in seconds; limits how often progress is shown.

    Yields:
        The function to call with the result so far, at any rate.
    """
    with ExitStack() as stack:
        bar = _bar(out, stack) if out.isatty() else None
        show, pause_s = (bar, _BAR_EVERY_S) if bar else (partial(_print_line, out), _LINE_EVERY_S)
        due = clock() + pause_s

        def update(result: ReplayResult) -> None:
            nonlocal due
            now = clock()
            if now >= due:
                due = now + pause_s
                show(result)

        yield update


def _line(result: ReplayResult) -> str:
    of = "" if result.planned is None else f" of {result.planned:,}"
    return (
        f"{len(result.requests):,}{of} requests, {result.tokens:,} tokens, "
        f"{result.running:,} in flight at {result.duration_s:,.0f} s"
    )


def _print_line(out: TextIO, result: ReplayResult) -> None:
    print(_line(result), file=out, flush=True)


def _bar(out: TextIO, stack: ExitStack) -> Callable[[ReplayResult], None] | None:
    try:
        from rich.console import Console  # noqa: PLC0415  # an extra
        from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415  # an extra
    except ImportError:
        return None
    columns = BarColumn(), TextColumn("{task.description}")
    live = stack.enter_context(Progress(*columns, console=Console(file=out), transient=True))
    task = live.add_task("starting", total=None)

    def show(result: ReplayResult) -> None:
        done = len(result.requests)
        live.update(task, total=result.planned, completed=done, description=_line(result))

    return show
