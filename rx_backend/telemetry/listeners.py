"""Whether anybody listens to a logger, found out cheaply enough to be asked for every request."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, cast

import structlog

__all__ = ("lowest_level",)


def lowest_level(logger: logging.Logger) -> int | None:
    """
    Give the lowest of DEBUG, INFO and WARNING at which somebody listens to *logger*, or to structlog.

    None where nobody does at any of them. A standard logger without a handler has no listener,
    although Python writes its warnings to stderr as a last resort.
    """
    if structlog.is_configured():
        return next(filter(_structlog.lets_through, _LEVELS), None)
    return next(filter(logger.isEnabledFor, _LEVELS), None) if logger.hasHandlers() else None


class _Structlog:
    """Which levels structlog's configuration lets through; a logger of it is made once to ask."""

    def __init__(self) -> None:
        self._made_from: tuple[object, object] | None = None
        self._bound: Any = None
        self._ask: Callable[[Any, int], bool] | None = None

    def lets_through(self, level: int) -> bool:
        """Whether events of *level* get anywhere; yes where that can't be told."""
        config = structlog.get_config()
        made_from = (config["wrapper_class"], config["logger_factory"])
        if made_from != self._made_from:
            self._bound = structlog.get_logger(__name__).bind()
            # The class is asked for the method: an instance makes a logging call of any name.
            kind = cast("type[object]", type(self._bound))
            self._ask = getattr(kind, "isEnabledFor", None) or getattr(kind, "is_enabled_for", None)
            self._made_from = made_from
        try:
            return self._ask is None or self._ask(self._bound, level)
        except AttributeError:
            # It asks a logger that has no level.
            return True


_LEVELS: Final = (logging.DEBUG, logging.INFO, logging.WARNING)
_structlog = _Structlog()
