"""The types of matplotlib's objects; its own annotations leave most arguments open."""

from __future__ import annotations

from typing import Any, TypeAlias

__all__ = ("Artist", "Axes", "Figure")

Artist: TypeAlias = Any
Axes: TypeAlias = Any
Figure: TypeAlias = Any
