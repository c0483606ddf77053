"""
What a test leaves behind: tasks, async generators, event loops, spans, contexts, complaints.

Event loops are looked at when they are about to be cleaned up, because cleaning cancels and
closes what was leaked. So it makes no difference whether a test uses ``run_virtual``,
``asyncio.run`` or a loop of its own.
"""

from __future__ import annotations

import asyncio
import asyncio.runners
import gc
import logging
import re
from asyncio import BaseEventLoop
from collections.abc import AsyncIterator, Callable, Coroutine
from types import AsyncGeneratorType
from typing import Any, Self, cast
from weakref import WeakKeyDictionary

import pytest
import structlog
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SynchronousMultiSpanProcessor

from operators._core import fusion, segment
from tests.spans import SpanLedger

__all__ = ("LeakWatch",)

# The functions as they are without a watch, so that a watch inside another takes its place.
_init = BaseEventLoop.__init__
_close = BaseEventLoop.close
_shutdown_asyncgens = BaseEventLoop.shutdown_asyncgens
_first_pull = segment.first_pull
_cancel_all_tasks: Callable[[BaseEventLoop], None] = vars(asyncio.runners)["_cancel_all_tasks"]
_on_start = SynchronousMultiSpanProcessor.on_start
_on_end = SynchronousMultiSpanProcessor.on_end

# Loggers whose warnings are findings. Those of OpenTelemetry tell of a span that is ended twice
# or written to after its end, and of a context that is detached where it was not attached.
_LOGGERS = ("asyncio", "opentelemetry")


class LeakWatch(logging.Handler):
    """
    Watches everything that runs inside its ``with`` block.

    What is watched: every event loop, every span of the OpenTelemetry SDK whichever its provider,
    the warnings that asyncio and OpenTelemetry log, and the context that the block runs in.
    Coroutines that were never awaited are pytest's to report, as they are when no watch is there.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._spans = SpanLedger()
        self._loops: list[BaseEventLoop] = []
        self._found: list[str] = []
        # The generators that streams pull; the loop does not know those.
        self._pulled: WeakKeyDictionary[AsyncGeneratorType[Any, Any], asyncio.AbstractEventLoop] = (
            WeakKeyDictionary()
        )
        self._allowed: list[str] = []
        self._patch = pytest.MonkeyPatch()
        self._contexts = _contexts()

    def allow(self, pattern: str) -> None:
        """Accept findings in which the regular expression *pattern* is found."""
        self._allowed.append(pattern)

    def leaks(self) -> list[str]:
        """Collect the garbage, then say what was left behind; closes loops that are open."""
        gc.collect()
        for loop in self._loops:
            if not loop.is_closed():
                self._found.append(f"event loop not closed: {loop!r}")
                loop.close()
        self._found += [f"span not ended: {span.name!r}" for span in self._spans.open]
        self._found += [
            f"context left behind: {now}"
            for before, now in zip(self._contexts, _contexts(), strict=True)
            if now != before
        ]
        return [
            leak
            for leak in dict.fromkeys(self._found)
            if not any(re.search(pattern, leak) for pattern in self._allowed)
        ]

    def emit(self, record: logging.LogRecord) -> None:
        """Take a logged warning as a finding."""
        self._found.append(f"{record.name} logged: {record.getMessage()}")

    def __enter__(self) -> Self:
        """Start to watch."""
        watch = self

        def init(loop: BaseEventLoop) -> None:
            _init(loop)
            watch._loops.append(loop)

        def close(loop: BaseEventLoop) -> None:
            watch._look_at(loop)
            _close(loop)

        def shutdown_asyncgens(loop: BaseEventLoop) -> Coroutine[Any, Any, None]:
            watch._look_at(loop)
            return _shutdown_asyncgens(loop)

        def cancel_all_tasks(loop: BaseEventLoop) -> None:
            # A release that was begun may take some turns of the loop.
            loop.run_until_complete(_turns())
            watch._look_at(loop)
            _cancel_all_tasks(loop)

        def on_start(
            processor: SynchronousMultiSpanProcessor,
            span: Span,
            parent_context: Context | None = None,
        ) -> None:
            watch._spans.on_start(span, parent_context)
            _on_start(processor, span, parent_context=parent_context)

        def on_end(processor: SynchronousMultiSpanProcessor, span: ReadableSpan) -> None:
            watch._spans.on_end(span)
            _on_end(processor, span)

        def first_pull(source: AsyncIterator[Any]) -> Any:
            if isinstance(source, AsyncGeneratorType):
                watch._pulled[source] = asyncio.get_running_loop()
            return _first_pull(cast("AsyncIterator[Any]", source))

        patch = self._patch.setattr
        patch(fusion, "first_pull", first_pull)
        patch(segment, "first_pull", first_pull)
        patch(BaseEventLoop, "__init__", init)
        patch(BaseEventLoop, "close", close)
        patch(BaseEventLoop, "shutdown_asyncgens", shutdown_asyncgens)
        patch(asyncio.runners, "_cancel_all_tasks", cancel_all_tasks)
        patch(SynchronousMultiSpanProcessor, "on_start", on_start)
        patch(SynchronousMultiSpanProcessor, "on_end", on_end)
        for name in _LOGGERS:
            patch(logging.getLogger(name), "handlers", [self])
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self._patch.undo()

    def _look_at(self, loop: BaseEventLoop) -> None:
        if loop.is_closed():
            return
        running = asyncio.current_task(loop) if loop.is_running() else None
        self._found += [
            f"task not done: {task.get_name()} of {task.get_coro()!r}"
            for task in asyncio.all_tasks(loop)
            if task is not running
        ]
        generators: set[AsyncGeneratorType[Any, Any]] = set(vars(loop).get("_asyncgens", ()))
        generators |= {generator for generator, of in self._pulled.items() if of is loop}
        self._found += [
            f"async generator not closed: {generator!r}"
            for generator in generators
            if generator.ag_frame is not None and generator.__name__ != "_until_shutdown"
        ]


async def _turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def _contexts() -> tuple[dict[str, Any], ...]:
    return dict(otel_context.get_current()), structlog.contextvars.get_contextvars()
