"""Checks of the items of an argument."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ("check_items",)


def check_items(name: str, items: Iterable[object], kind: type[object]) -> None:
    """Raise ``TypeError`` unless each of the items of the argument *name* is a *kind*."""
    for place, item in enumerate(items):
        if not isinstance(item, kind):
            raise TypeError(f"{name}[{place}]: expected {kind.__name__}, got {item!r}")
