"""Tell of chunks whose tokens can't be counted."""

from __future__ import annotations

import logging
from functools import cache

__all__ = ("warn_of_uncounted",)


@cache
def warn_of_uncounted(operator: str) -> None:
    """Warn, once in a process, that an operator which counts token ids has had text without any."""
    _log.warning(
        "%s: an answer has text and no token ids: its tokens are not counted; see the engine's "
        "options for token ids, or leave the operator out",
        operator,
    )


_log = logging.getLogger(__name__)
