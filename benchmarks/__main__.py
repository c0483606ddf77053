"""Run all measurements; docs/performance.md explains them."""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import tracemalloc
from collections.abc import Awaitable, Callable

from benchmarks.added import adding
from benchmarks.composing import chains
from benchmarks.measure import interleaved, print_ratios
from benchmarks.resumable import READERS, resuming
from benchmarks.rivals import Open, ScriptedEngine, chunks_of, opened, rivals
from benchmarks.sharing import cpu_of_sharing, memory_of_keeping
from benchmarks.waiting import cpu_of_waiting


def main() -> None:
    """Run the measurements named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument(
        "which",
        nargs="*",
        help="chunk, waiting, added, composing, setup, open, memory, resumable, sharing or keeping; "
        "all of them by default",
    )
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    print(sys.version.split()[0])
    every = {
        "chunk": per_chunk,
        "waiting": cpu_of_waiting,
        "added": added,
        "composing": composing,
        "setup": setup,
        "open": many_open,
        "memory": memory,
        "resumable": resumable,
        "sharing": cpu_of_sharing,
        "keeping": memory_of_keeping,
    }
    for which in options.which or every:
        if which not in every:
            parser.error(f"expected one of {', '.join(every)}, got {which!r}")
        every[which](options.rounds)


def per_chunk(rounds: int) -> None:
    """Measure the cost of a chunk in a long stream."""

    def consuming(open_: Open) -> Callable[[], Awaitable[int]]:
        return lambda: chunks_of(open_)

    ways = {name: consuming(way) for name, way in rivals(ScriptedEngine(2_000)).items()}
    best = interleaved(ways, rounds=rounds)
    print_ratios("Time per chunk", best, against="hand-written", unit="chunk")


def added(rounds: int) -> None:
    """Measure what each operator adds to a chunk, as a share of the hand-written loop's cost."""

    def consuming(open_: Open) -> Callable[[], Awaitable[int]]:
        return lambda: chunks_of(open_)

    written = rivals(ScriptedEngine(2_000))["hand-written"]
    ways = {"hand-written": written, **adding(2_000)}
    best = interleaved({name: consuming(way) for name, way in ways.items()}, rounds=rounds)
    loop, standard = best.pop("hand-written"), best.pop("standard pipeline")
    print("\nAdded to a chunk (ns; as a part of the hand-written loop)")
    for name, value in best.items():
        print(f"  {name:<40}{value - standard:>8.0f}{(value - standard) / loop:>8.2f}")


def composing(rounds: int) -> None:
    """Measure a chain of simple steps in each library."""
    best = interleaved(chains(2_000), rounds=rounds)
    print_ratios("map, filter, scan", best, against="ours", unit="item")


def setup(rounds: int) -> None:
    """Measure a request of two chunks, with what it leaves for the event loop's next turn."""

    def requests(open_: Open) -> Callable[[], Awaitable[int]]:
        async def run() -> int:
            for _ in range(200):
                await chunks_of(open_)
                # The hand-written loop leaves a cancelled task behind, which has to end.
                await asyncio.sleep(0)
            return 200

        return run

    ways = {name: requests(way) for name, way in rivals(ScriptedEngine(2)).items()}
    best = interleaved(ways, rounds=rounds)
    print_ratios("A request of two chunks", best, against="hand-written", unit="request")


def many_open(rounds: int) -> None:
    """Measure the cost of a chunk when many streams are open and pulled in turn."""

    def pulling(open_: Open, count: int) -> Callable[[], Awaitable[int]]:
        async def run() -> int:
            streams = await opened(open_, count, pulls=20)
            turns = 200_000 // count
            start = perf_counter()
            for _ in range(turns):
                for stream in streams:
                    await anext(stream)
            elapsed = perf_counter() - start
            for stream in streams:
                await stream.aclose()  # type: ignore[attr-defined]
            timed.append(elapsed * 1e9 / (turns * count))
            return turns * count

        timed: list[float] = []
        results[open_, count] = timed
        return run

    from time import perf_counter

    results: dict[tuple[Open, int], list[float]] = {}
    ways = rivals(ScriptedEngine(10_000_000))
    names = ("bare engine loop", "hand-written", "ours, standard pipeline")
    jobs = {
        f"{name}, {count} open": pulling(ways[name], count)
        for name in names
        for count in (10, 10_000)
    }
    interleaved(jobs, rounds=max(3, rounds // 8))
    print("\nTime per chunk with many streams open (ns; ratio to 10 open)")
    for name in names:
        few, many = (min(results[ways[name], count]) for count in (10, 10_000))
        print(f"  {name:<34}{few:>10.0f}{many:>10.0f}{many / few:>8.2f}")


def memory(rounds: int) -> None:
    """Measure the memory of an open stream."""

    async def bytes_of(open_: Open) -> float:
        await chunks_of(open_)
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        streams = await opened(open_, 1_000)
        await asyncio.sleep(0)
        gc.collect()
        size = (tracemalloc.get_traced_memory()[0] - before) / 1_000
        tracemalloc.stop()
        for stream in streams:
            await stream.aclose()  # type: ignore[attr-defined]
        return size

    sizes: dict[str, float] = {}
    engine_ways = rivals(ScriptedEngine(5))
    for name, open_ in engine_ways.items():
        sizes[name] = asyncio.run(bytes_of(open_))
    print_ratios("Memory per open stream", sizes, against="hand-written", unit="stream, in bytes")


def resumable(rounds: int) -> None:
    """Measure what holding a stream adds to a chunk, for each of its readers."""
    best = interleaved(resuming(streams=100, chunks=200), rounds=max(3, rounds // 4))
    direct = best.pop("read directly")
    print("\nA chunk of 100 streams (ns; added per chunk and reader)")
    print(f"  {'read directly':<34}{direct:>10.0f}")
    for readers, (name, value) in zip(READERS, best.items(), strict=True):
        print(f"  {name:<34}{value:>10.0f}{(value - direct) / readers:>10.0f}")


if __name__ == "__main__":
    main()
