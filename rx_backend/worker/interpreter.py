"""How soon the runtime's threads get a turn in the interpreter."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager

__all__ = ("switching_within",)


@contextmanager
def switching_within(seconds: float) -> Generator[None]:
    """
    Let threads wait no longer than *seconds* for the interpreter, while the block runs.

    The runtime's threads need it for each request that arrives and each item that leaves. By
    default a busy event loop keeps them waiting for 5 ms each time, which its clients see as time
    to first token.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, seconds))
    try:
        yield
    finally:
        sys.setswitchinterval(before)
