"""
What adapter and pipeline add to a step of a real engine, and what part of the step that is.

    python -m benchmarks.engine_step MODEL.gguf

`LlamaCppEngine` answers several requests at once, in turn bare and behind an `EngineAdapter`. All of
the figures are CPU time, so other work on the machine does not count: that of the event loop's thread,
and that of the engine's step thread. The two threads disturb each other, and a step may take twice as
long for that, so rounds are compared in pairs, one after the other, and the median counts.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rx_backend import EngineAdapter, PreprocessedRequest, RequestContext
from rx_backend.engines.llama_cpp import LlamaCppEngine
from rx_backend.protocols import SamplingOptions, StopConditions

Open = Callable[[PreprocessedRequest], Awaitable[AsyncIterator[Any]]]


@dataclass(frozen=True)
class Cost:
    """CPU time per step, in ns: of the event loop's thread, and of all others."""

    loop: float
    others: float


def main() -> None:
    """Measure the model named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine_step")
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128, help="per stream and round")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    print(sys.version.split()[0], options.model.name, f"{options.streams} streams")
    asyncio.run(_measure(options))


async def _measure(options: argparse.Namespace) -> None:
    engine = LlamaCppEngine(options.model, max_batch=options.streams, context_length=512)
    await engine.start(0)
    adapter = EngineAdapter(engine)

    async def bare(request: PreprocessedRequest) -> AsyncIterator[Any]:
        return engine.generate(request, RequestContext())

    ways: dict[str, Open] = {"bare": bare, "behind the adapter": adapter.generate}
    costs: dict[str, list[Cost]] = {name: [] for name in ways}
    try:
        for _ in range(options.rounds):
            for name, way in ways.items():
                costs[name].append(await _round(way, options.streams, options.tokens))
    finally:
        await engine.cleanup()
    _report(costs)


async def _round(way: Open, streams: int, tokens: int) -> Cost:
    """Answer *streams* requests at once; a step gives one token to each."""
    gc.collect()
    loop, process = time.thread_time_ns(), time.process_time_ns()
    await asyncio.gather(*(_read(way, place, tokens) for place in range(streams)))
    loop, process = time.thread_time_ns() - loop, time.process_time_ns() - process
    return Cost(loop / tokens, (process - loop) / tokens)


async def _read(way: Open, place: int, tokens: int) -> None:
    request = PreprocessedRequest(
        token_ids=[10 + place, 11, 12, 13],
        stop_conditions=StopConditions(max_tokens=tokens, ignore_eos=True),
        sampling_options=SamplingOptions(temperature=0),
    )
    async for _ in await way(request):
        pass


def _report(costs: dict[str, list[Cost]]) -> None:
    step = statistics.median(cost.others for every in costs.values() for cost in every)
    print(f"  {'step of the engine':<34}{step / 1000:>10.1f} µs")
    for name, every in costs.items():
        value = statistics.median(cost.loop for cost in every)
        print(f"  {'event loop, ' + name:<34}{value / 1000:>10.1f} µs{value / step:>9.2%}")
    pairs = zip(*costs.values(), strict=True)
    low, added, high = statistics.quantiles(
        (behind.loop - bare.loop for bare, behind in pairs), n=4
    )
    print(
        f"  {'adapter and pipeline add':<34}{added / 1000:>10.1f} µs{added / step:>9.2%}"
        f"   (half of the pairs: {low / 1000:.1f} to {high / 1000:.1f} µs)"
    )


if __name__ == "__main__":
    main()
