"""Settings of a worker's process: the event loop, thread switches, the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

__all__ = ("frozen_heap", "max_switch_interval", "run_on_fast_loop")

_THRESHOLDS = (5_000, 5, 50)


def run_on_fast_loop(main: Coroutine[Any, Any, None]) -> None:
    """Run *main* like `asyncio.run`, on uvloop if that is installed."""
    loops: Callable[[], asyncio.AbstractEventLoop] | None = None
    if find_spec("uvloop") is not None:
        loops = import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=loops) as runner:
        runner.run(main)


@contextmanager
def max_switch_interval(seconds: float) -> Generator[None]:
    """
    Let threads wait at most *seconds* for the interpreter while the block runs.

    The runtime's threads need it for each incoming request and each outgoing item. By default a
    busy event loop makes them wait 5 ms each time, which adds to the time to first token.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, seconds))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextmanager
def frozen_heap() -> Generator[None]:
    """
    Keep all objects of the started process out of garbage collection while the block runs.

    A collection that traverses a loaded engine, or 10,000 open streams, pauses every stream for
    tenths of a second. Young objects are collected in steps of a few milliseconds instead.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
