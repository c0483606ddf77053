"""The error for a program that waits forever, and where its tasks wait."""

from __future__ import annotations

import asyncio
import gc
from types import FrameType

__all__ = ("Deadlock", "waiting_tasks")

_WHAT = (
    "nothing can happen any more after {time_s:g} s of virtual time: no callback is ready, "
    "no timer is set, no thread or file descriptor is left that could wake the loop"
)


class Deadlock(RuntimeError):
    """
    Nothing can happen any more on the virtual loop; on the real clock the program would hang.

    Attributes:
        tasks: The waiting tasks, each with the calls in which it is suspended, the outermost first:
            ``name: function (file:line) > function (file:line)``.
        time_s: The virtual time of the deadlock, in seconds.
    """

    def __init__(self, tasks: tuple[str, ...], time_s: float) -> None:
        self.tasks = tasks
        self.time_s = time_s
        super().__init__(tasks, time_s)

    def __str__(self) -> str:
        lines = [_WHAT.format(time_s=self.time_s)]
        if self.tasks:
            lines += ["waiting:", *(f"  {task}" for task in self.tasks)]
        lines.append("code that waits for another thread must do so inside loop.real_time()")
        return "\n".join(lines)


def waiting_tasks(loop: asyncio.AbstractEventLoop) -> tuple[str, ...]:
    """Return the unfinished tasks of *loop* and where they wait, sorted by name."""
    return tuple(sorted(map(_described, asyncio.all_tasks(loop))))


def _described(task: asyncio.Task[object]) -> str:
    calls = _suspended_calls(task.get_coro())
    return f"{task.get_name()}: {' > '.join(calls) or 'not started'}"


# Of coroutines, async generators and generators: the suspended call, and its awaited object.
_STEPS = (("cr_frame", "cr_await"), ("ag_frame", "ag_await"), ("gi_frame", "gi_yieldfrom"))


def _suspended_calls(awaitable: object) -> tuple[str, ...]:
    calls: list[str] = []
    seen: set[int] = set()
    while awaitable is not None and id(awaitable) not in seen:
        seen.add(id(awaitable))
        step = next((step for step in _STEPS if hasattr(awaitable, step[0])), None)
        if step is None:
            # Only the collector knows the generator of an `async for` or an `anext()`.
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
