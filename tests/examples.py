"""How many examples a property test has: all on the main Python, a fifth with the profile "few"."""

from __future__ import annotations

from hypothesis import settings

__all__ = ("examples",)


def examples(number: int) -> settings:
    """Return the settings of a test that needs this *number* of examples."""
    return settings(max_examples=max(1, number * settings().max_examples // 100))
