"""The error of a program that waits for ever, and where its tasks wait."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import dataclass
from types import FrameType

__all__ = ("Deadlock", "WaitingTask", "waiting_tasks")

_WHAT = (
    "nothing can happen any more after {time_s:g} s of virtual time: no callback is ready, "
    "no timer is set, no thread or file descriptor is left that could wake the loop"
)


@dataclass(frozen=True, slots=True)
class WaitingTask:
    """
    A task that is not done, and the calls in which it is suspended.

    Attributes:
        name: Name of the task.
        where: One line per suspended call, outermost first, as ``function (file:line)``.
    """

    name: str
    where: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name}: " + (" > ".join(self.where) or "not started")


class Deadlock(RuntimeError):
    """
    Nothing can happen any more on the virtual loop; on the real clock the program would hang.

    Attributes:
        tasks: The tasks that wait.
        time_s: Virtual time in seconds at which everything stood still.
    """

    def __init__(self, tasks: tuple[WaitingTask, ...], time_s: float) -> None:
        self.tasks = tasks
        self.time_s = time_s
        super().__init__(tasks, time_s)

    def __str__(self) -> str:
        lines = [_WHAT.format(time_s=self.time_s)]
        if self.tasks:
            lines += ["waiting:", *(f"  {task}" for task in self.tasks)]
        lines.append("code that waits for another thread must do so inside loop.hold_time()")
        return "\n".join(lines)


def waiting_tasks(loop: asyncio.AbstractEventLoop) -> tuple[WaitingTask, ...]:
    """Return the unfinished tasks of *loop*, sorted by name."""
    tasks = [
        WaitingTask(task.get_name(), _suspended_calls(task.get_coro()))
        for task in asyncio.all_tasks(loop)
    ]
    return tuple(sorted(tasks, key=lambda task: task.name))


# Of coroutines, async generators and generators: the suspended call, and what it waits for.
_STEPS = (("cr_frame", "cr_await"), ("ag_frame", "ag_await"), ("gi_frame", "gi_yieldfrom"))


def _suspended_calls(awaitable: object) -> tuple[str, ...]:
    calls: list[str] = []
    seen: set[int] = set()
    while awaitable is not None and id(awaitable) not in seen:
        seen.add(id(awaitable))
        step = next((step for step in _STEPS if hasattr(awaitable, step[0])), None)
        if step is None:
            # Only the collector knows the generator behind an `async for` or an `anext()`.
            inner = gc.get_referents(awaitable)
            awaitable = next(
                (one for one in inner if any(hasattr(one, f) for f, _ in _STEPS)), None
            )
            continue
        frame: FrameType | None = getattr(awaitable, step[0])
        if frame is not None:
            code = frame.f_code
            calls.append(f"{code.co_qualname} ({code.co_filename}:{frame.f_lineno})")
        awaitable = getattr(awaitable, step[1])
    return tuple(calls)
