"""A disk that is full, for files that are written meanwhile."""

from __future__ import annotations

import resource
import sys
from collections.abc import Generator
from contextlib import contextmanager
from unittest.mock import patch

__all__ = ("disk_with",)


@contextmanager
def disk_with(free_bytes: int) -> Generator[None]:
    """No file can grow beyond *free_bytes*: what is written then fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free_bytes, hard))
    try:
        # Bytecode of what is imported meanwhile would be cut short, and fail every later import.
        with patch.object(sys, "dont_write_bytecode", True):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
