"""The command line: plans, batches, and what to say of them."""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import gc
import os
import sys
import time
from array import array
from collections import defaultdict
from collections.abc import Iterator
from fnmatch import fnmatchcase
from random import Random
from statistics import median

from tests.matrix.batch import Batches, Plan, Result
from tests.matrix.consumers import CONSUMERS
from tests.matrix.engines import ENGINES
from tests.matrix.witness import Witness, footprint

__all__ = ("Report", "main", "run")

BATCH = 200
MORE_OBJECTS = 80
MORE_BLOCKS = 1500
SHOWN = 6
MOST_RERUNS = 300


class Report:
    """
    What was found, grouped by what is wrong.

    Attributes:
        requests: How many were run.
        problems: What is wrong, and with which pairs and requests.
        known: What is wrong with batches and was found in one request alone.
        reruns: How many requests were run again for that.
        logged: The library's own log lines.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.problems: defaultdict[str, dict[str, int]] = defaultdict(dict)
        self.known: set[str] = set()
        self.reruns = 0
        self.logged: dict[str, int] = {}

    def add(self, result: Result) -> None:
        """Take what came of requests, each of them alone or known by itself."""
        for record in result.records:
            pair = f"--engine {record.engine} --consumer {record.consumer}"
            for problem in record.problems:
                self.problems[problem].setdefault(pair, record.index)
            if len(result.records) == 1:
                for problem in result.left:
                    self.problems[problem].setdefault(pair, record.index)

    def lines(self, how: str) -> Iterator[str]:
        """Say what is wrong, with which pairs, and how to run one again."""
        for problem, pairs in sorted(self.problems.items(), key=lambda item: -len(item[1])):
            yield f"{problem}  ({len(pairs)} pairs)"
            for pair, index in list(pairs.items())[:SHOWN]:
                which = "" if pair.startswith("--first") else f" --index {index}"
                yield f"    python -m tests.matrix {pair} {how}{which}"
            if len(pairs) > SHOWN:
                yield f"    and {len(pairs) - SHOWN} more"


async def run(plan: Plan, *, seed: int, size: int, strict: bool) -> Report:
    """
    Run a plan in batches of *size*, and find out whose fault it is where one fails.

    Args:
        plan: The requests.
        seed: For the requests' random choices.
        size: How many run together.
        strict: Whether warnings are errors.
    """
    report = Report()
    gc.collect()
    gc.freeze()
    with Witness(asyncio.get_running_loop(), strict=strict) as witness:
        batches = Batches(witness, seed)
        footprints = _Footprints()
        try:
            for begin in range(0, len(plan), size):
                part = plan[begin : begin + size]
                result = await batches.run(part)
                report.requests += len(part)
                report.add(result)
                if result.left and len(part) > 1:
                    await _blame(batches, part, result, report)
                footprints.take()
            if not report.problems:
                await _check_growth(batches, footprints, plan, size, report)
        finally:
            faulthandler.cancel_dump_traceback_later()
        report.logged = dict(witness.logged)
    return report


async def _blame(batches: Batches, part: Plan, result: Result, report: Report) -> None:
    """
    Run the requests of a failed batch one by one, first those that failed by themselves.

    Those that hang are left out: they would take long, and are known.
    """
    wanted = set(map(_kind, result.left)) - report.known
    found: set[str] = set()
    order = sorted(zip(result.records, part, strict=True), key=lambda both: not both[0].problems)
    for record, request in order:
        if wanted <= found or report.reruns == MOST_RERUNS:
            break
        if any(problem.startswith("hang") for problem in record.problems):
            continue
        report.reruns += 1
        alone = await batches.run([request])
        report.add(alone)
        found.update(map(_kind, alone.left))
    report.known |= found
    for problem in result.left:
        if _kind(problem) in wanted - found:
            together = f"--first {part[0][0]} --requests {len(part)}"
            report.problems[f"{problem} (only together)"][together] = part[0][0]


def _kind(problem: str) -> str:
    return " ".join(word for word in problem.split() if word.isalpha())


async def _check_growth(
    batches: Batches, footprints: _Footprints, plan: Plan, size: int, report: Report
) -> None:
    """Compare the first batches after a warm-up with the last ones."""
    if not footprints.growth(warm_up=max(12, len(plan) // size // 4)):
        return
    # Caches fill up for a while, above all on a slow machine: what is lost is lost again.
    half = plan[len(plan) // 2 :]
    again = _Footprints()
    for begin in range(0, len(half), size):
        await batches.run(half[begin : begin + size])
        again.take()
    more = again.growth()
    if not more:
        return
    problem = f"{more[0]:+.0f} objects and {more[1]:+.0f} blocks in {len(half)} requests"
    together = f"--first {plan[0][0]} --requests {len(plan)}"
    report.problems[problem][together] = plan[0][0]


class _Footprints:
    """The footprint after each batch, in arrays: a list would grow by what is looked for."""

    def __init__(self) -> None:
        self._objects = array("q")
        self._blocks = array("q")

    def take(self) -> None:
        objects, blocks = footprint()
        self._objects.append(objects)
        self._blocks.append(blocks)

    def growth(self, warm_up: int = 0) -> tuple[float, float] | None:
        """Return how many objects and blocks more the last batches leave than the first; None for few."""
        if len(self._objects) - warm_up < 12:
            return None
        objects, blocks = (
            median(taken[-5:]) - median(taken[warm_up : warm_up + 5])
            for taken in (self._objects, self._blocks)
        )
        return (objects, blocks) if objects > MORE_OBJECTS or blocks > MORE_BLOCKS else None


def _plan(arguments: argparse.Namespace) -> Plan:
    engines = [
        name
        for name, kind in ENGINES.items()
        if fnmatchcase(name, arguments.engine) and (arguments.engine != "*" or not kind.is_kept)
    ]
    consumers = [name for name in CONSUMERS if fnmatchcase(name, arguments.consumer)]
    if not engines or not consumers:
        raise SystemExit("no such engine or consumer")
    if arguments.all:
        pairs = [(engine, consumer) for engine in engines for consumer in consumers]
        return [(index, *pair) for index, pair in enumerate(pairs)]
    indexes = range(arguments.first, arguments.first + arguments.requests)
    if arguments.index is not None:
        indexes = range(arguments.index, arguments.index + 1)
    return list(_shuffled(engines, consumers, indexes, arguments.seed))


def _shuffled(
    engines: list[str], consumers: list[str], indexes: range, seed: int
) -> Iterator[tuple[int, str, str]]:
    """Go through all pairs again and again, each time in another order."""
    pairs = [(engine, consumer) for engine in engines for consumer in consumers]
    order: list[tuple[str, str]] = []
    shuffled = -1
    for index in indexes:
        turn, place = divmod(index, len(pairs))
        if turn != shuffled:
            order, shuffled = Random(f"{seed}/{turn}").sample(pairs, len(pairs)), turn
        yield index, *order[place]


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    add = parser.add_argument
    add(
        "--requests",
        type=int,
        default=20000,
        help="how many; all pairs in random order, again and again",
    )
    add("--first", type=int, default=0, help="the index of the first one")
    add("--index", type=int, help="the only one to run")
    add("--all", action="store_true", help="every pair once instead")
    add("--seed", type=int, default=1)
    add("--engine", default="*", help="a name or pattern")
    add("--consumer", default="*", help="a name or pattern")
    add("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    add("--eager", action="store_true", help="with asyncio.eager_task_factory (Python 3.12)")
    add("--debug", action="store_true", help="asyncio's debug mode, and warnings as errors")
    return parser.parse_args(argv)


def _new_loop(arguments: argparse.Namespace) -> asyncio.AbstractEventLoop:
    if arguments.loop == "uvloop":
        import uvloop

        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    else:
        loop = asyncio.new_event_loop()
    loop.slow_callback_duration = 60.0
    if arguments.eager:
        loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    return loop


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(argv: list[str] | None = None) -> int:
    """Run the matrix; gives the exit code."""
    arguments = _arguments(argv)
    plan = _plan(arguments)
    loop = _new_loop(arguments)
    begun = time.perf_counter()
    with asyncio.Runner(debug=arguments.debug, loop_factory=lambda: loop) as runner:
        report = runner.run(run(plan, seed=arguments.seed, size=BATCH, strict=arguments.debug))
        seconds = time.perf_counter() - begun
        engines, consumers = len({e for _, e, _ in plan}), len({c for _, _, c in plan})
        _say(
            f"{report.requests} requests, {engines} engines x {consumers} consumers, "
            f"{arguments.loop}{' eager' * arguments.eager}{' debug' * arguments.debug}, "
            f"seed {arguments.seed}: {seconds:.1f} s, "
            f"{f'{len(report.problems)} kinds of problem' if report.problems else 'nothing left'}"
        )
        for line in report.lines(f"--seed {arguments.seed}"):
            _say(line)
        if report.problems:
            for line, count in sorted(report.logged.items()):
                _say(f"the library's log: {count} times {line}")
            # Closing a loop with tasks that hang would hang too.
            os._exit(1)
    return 0
