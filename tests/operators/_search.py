"""What a search of a whole text, or of all tokens, finds: the model of the operators that stop."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

__all__ = ("first_match", "undecided")

# A text, or token ids.
T = TypeVar("T", str, tuple[int, ...])


def first_match(stops: Collection[T], whole: T, least: int = 0) -> tuple[int, int] | None:
    """Return where the first stop that is complete begins and ends, the longest of several."""
    for end in range(max(1, least), len(whole) + 1):
        found = [len(stop) for stop in stops if whole[:end][-len(stop) :] == stop]
        if found:
            return end - max(found), end
    return None


def undecided(stops: Collection[T], whole: T) -> int:
    """Return how much of the end may be the beginning of a stop."""
    beginnings = {stop[:length] for stop in stops for length in range(1, len(stop))}
    return max((n for n in range(1, len(whole) + 1) if whole[-n:] in beginnings), default=0)
