"""One batch of requests on the running loop: begun together, attended to, settled and checked."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeAlias

from tests.matrix.call import POOL
from tests.matrix.kinds import CONSUMERS, ENGINES
from tests.matrix.record import Record
from tests.matrix.request import Request
from tests.matrix.witness import RECORD, Witness

__all__ = ("Batches", "Plan", "Result")

Plan: TypeAlias = Sequence[tuple[int, str, str]]
"""What to run together: indexes, engines, consumers."""

MODES = ("agg", "prefill", "decode")

ROUND_S = 0.006
STALL_S = 45.0
PATIENCE = 4  # quiet rounds, after which a client of an engine that is silent by design gives up
HANG = 250  # and for how many one may be quiet whose engine is not
SETTLE_ROUNDS = 80
COLLECT_IN = (2, 20, 70)


@dataclass
class Result:
    """
    What came of a batch.

    Attributes:
        records: One for each request.
        left: What is wrong and can't be told of which request.
    """

    records: list[Record]
    left: list[str] = field(default_factory=list[str])

    @property
    def is_clean(self) -> bool:
        return not self.left and not any(record.problems for record in self.records)


@dataclass
class _Watched:
    request: Request
    progress: int = -1
    quiet: int = 0
    stage: int = 0


class Batches:
    """
    Runs batches, one after the other.

    Args:
        witness: Listens to the process.
        seed: For every random choice, together with a request's index.
    """

    def __init__(self, witness: Witness, seed: int) -> None:
        self._witness = witness
        self._seed = seed
        self._abandoned: set[asyncio.Task[Any]] = set()

    async def run(self, plan: Plan) -> Result:
        """Run requests together, and say what is left of them."""
        released = asyncio.Event()
        records = await self._consume(plan, released)
        released.set()
        await self._settle(records)
        result = Result(records)
        for task in self._others():
            self._abandoned.add(task)
            result.left.append(f"task left: {_name(task)}")
            task.cancel()
        for record in records:
            record.check()
        result.left += self._witness.take()
        return result

    async def _consume(self, plan: Plan, released: asyncio.Event) -> list[Record]:
        records: list[Record] = []
        live: dict[asyncio.Task[None], _Watched] = {}
        for index, engine, consumer in plan:
            rng = Random(f"{self._seed}/{index}/{engine}/{consumer}")
            record = Record(engine, consumer, rng.choice(MODES), index)
            records.append(record)
            request = Request(
                record,
                (ENGINES[engine], CONSUMERS[consumer]),
                rng,
                released,
                tracer=self._witness.tracer,
                meter_provider=self._witness.meter_provider,
            )
            live[asyncio.create_task(_consume(request))] = _Watched(request)
        while live:
            done, _ = await asyncio.wait(live, timeout=ROUND_S)
            self._tick()
            for task in done:
                del live[task]
            for task, watched in list(live.items()):
                if not self._attend(task, watched):
                    del live[task]
                    self._abandoned.add(task)
        return records

    def _attend(self, task: asyncio.Task[None], watched: _Watched) -> bool:
        """Be the client's patience; False for a request that hangs in spite of it."""
        request, record = watched.request, watched.request.record
        if record.progress != watched.progress:
            watched.progress, watched.quiet = record.progress, 0
            return True
        watched.quiet += 1
        is_patient = record.is_stuck and watched.quiet >= PATIENCE and watched.stage < 2
        if not is_patient and watched.quiet < HANG:
            return True
        watched.quiet = 0
        watched.stage += 1
        if not is_patient:
            record.blame(f"hang{' after its cancellation' * (watched.stage > 2)}: {_stack(task)}")
            if watched.stage > 3:
                return False
            watched.stage = max(watched.stage, 2)
        if watched.stage == 1:
            request.signal()
        else:
            request.cancel(task)
        return True

    async def _settle(self, records: list[Record]) -> None:
        """Give the loop turns and the collector a chance until nothing is left, or for a while."""
        for number in range(SETTLE_ROUNDS):
            self._tick()
            await asyncio.sleep(0 if number < 4 else 0.001)
            if number in COLLECT_IN:
                gc.collect()
            if number == COLLECT_IN[0]:
                barrier: list[Future[None]] = [POOL.submit(_nothing) for _ in range(4)]
                await asyncio.get_running_loop().run_in_executor(None, wait, barrier)
            is_over = number > COLLECT_IN[0] and not self._others()
            if is_over and all(record.is_released for record in records):
                break
        _forget_cancelled_timers()
        await asyncio.sleep(0)

    def _tick(self) -> None:
        """End the process with all stacks where the loop does not turn any more."""
        faulthandler.dump_traceback_later(STALL_S, exit=True, file=self._witness.stderr)

    def _others(self) -> set[asyncio.Task[Any]]:
        current = asyncio.current_task()
        return {
            task
            for task in asyncio.all_tasks()
            if task is not current and task not in self._abandoned
        }


async def _consume(request: Request) -> None:
    RECORD.set(request.record)
    try:
        await CONSUMERS[request.record.consumer].consume(request)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        request.judge(error)


def _nothing() -> None:
    pass


def _forget_cancelled_timers() -> None:
    """Have the loop throw its cancelled timers away, which it does when they are the majority."""
    loop = asyncio.get_running_loop()
    for _ in range(300):
        loop.call_later(60, _nothing).cancel()


def _name(task: asyncio.Task[Any]) -> str:
    return getattr(task.get_coro(), "__qualname__", "?")


def _stack(task: asyncio.Task[Any]) -> str:
    """Say where a task waits, the innermost frames first."""
    frames: list[str] = []
    step: Any = task.get_coro()
    while step is not None:
        frame = next((found for name in _FRAMES if (found := getattr(step, name, None))), None)
        if frame is not None:
            file = frame.f_code.co_filename.rsplit("/", 1)[-1]
            frames.append(f"{file}:{frame.f_lineno} {frame.f_code.co_name}")
        step = next(
            (getattr(step, name) for name in _AWAITED if getattr(step, name, None) is not None),
            None,
        )
    return " < ".join(reversed(frames[-4:]))


_FRAMES = ("cr_frame", "ag_frame", "gi_frame")
_AWAITED = ("cr_await", "ag_await", "gi_yieldfrom")
