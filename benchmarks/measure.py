"""Interleaved measurement: rivals take turns in one process, and the best round counts."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter

__all__ = ("interleaved", "print_ratios")

Rival = Callable[[], Awaitable[int]]
"""Does the work of one round; returns the number of units (chunks, requests)."""


def interleaved(
    rivals: Mapping[str, Rival], *, rounds: int, clock: Callable[[], float] = perf_counter
) -> dict[str, float]:
    """Time each rival *rounds* times in turn; return its best time per unit, in ns."""
    best = dict.fromkeys(rivals, float("inf"))
    for _ in range(rounds):
        for name, rival in rivals.items():
            best[name] = min(best[name], asyncio.run(_timed(rival, clock)))
    return best


async def _timed(rival: Rival, clock: Callable[[], float]) -> float:
    gc.collect()
    start = clock()
    units = await rival()
    return (clock() - start) * 1e9 / units


def print_ratios(title: str, best: Mapping[str, float], *, against: str, unit: str) -> None:
    """Print each rival's best time, and its ratio to one of them."""
    print(f"\n{title} (ns per {unit}; ratio to {against!r})")
    for name, value in best.items():
        print(f"  {name:<34}{value:>10.0f}{value / best[against]:>8.2f}")
