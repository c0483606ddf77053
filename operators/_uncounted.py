"""Warn of chunks whose tokens can't be counted."""

from __future__ import annotations

import logging
from functools import cache

__all__ = ("warn_of_uncounted",)


@cache
def warn_of_uncounted(operator: str) -> None:
    """Warn, once per process, that an operator which counts token ids saw text without any."""
    _log.warning(
        "%s: an answer has text but no token ids, so its tokens are not counted: enable token ids "
        "in the engine, or remove the operator",
        operator,
    )


_log = logging.getLogger(__name__)
