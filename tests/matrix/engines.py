"""All kinds of engine, by name."""

from __future__ import annotations

from tests.matrix import (
    engines_cancelled,
    engines_cleaning,
    engines_context,
    engines_failing,
    engines_forms,
    engines_plain,
    engines_tasks,
)
from tests.matrix.kinds import ENGINES

__all__ = (
    "ENGINES",
    "engines_cancelled",
    "engines_cleaning",
    "engines_context",
    "engines_failing",
    "engines_forms",
    "engines_plain",
    "engines_tasks",
)
