"""
Continuous batching in simulated time: who runs in a step, how long it takes, who gets a token.

One task per scheduler walks from step to step while there is work. It never blocks on a
consumer: a token is one increment of a counter, plus one future when its consumer waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import Context
from itertools import chain

from rx_backend.context import RequestContext
from rx_backend.engines.sequence import Load, Sequence, Timing
from rx_backend.errors import BackendError, as_backend_error

__all__ = ("Scheduler",)


class Scheduler:
    """
    The batch, the queue before it, and the one task that steps through them.

    A step first takes up to `prefill_chunk_tokens` of waiting prompts, oldest first, beside
    one token for every decoding sequence. A prompt that is finished in a step yields its
    first token at the end of that step.
    """

    def __init__(
        self, timing: Timing, *, max_batch: int, prefill_chunk_tokens: int, kv_tokens: int | None
    ) -> None:
        """
        Make an idle scheduler.

        Args:
            timing: What a step costs.
            max_batch: Most sequences in the batch.
            prefill_chunk_tokens: Most prompt tokens in one step.
            kv_tokens: KV-cache size in tokens, None for no limit.
        """
        self._timing = timing
        self._max_batch = max_batch
        self._chunk = prefill_chunk_tokens
        self._kv_limit = kv_tokens
        self._kv_used = 0
        self._waiting: deque[Sequence] = deque()
        self._prefilling: list[Sequence] = []
        self._decoding: list[Sequence] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def load(self) -> Load:
        """What is queued and running now."""
        return Load(
            waiting=len(self._waiting),
            prefilling=len(self._prefilling),
            decoding=len(self._decoding),
            kv_tokens=self._kv_used,
        )

    @property
    def idle(self) -> bool:
        """Whether nothing is queued or running."""
        return not (self._waiting or self._prefilling or self._decoding)

    def submit(self, sequence: Sequence) -> None:
        """Queue *sequence*; needs a running event loop."""
        self._waiting.append(sequence)
        if self._task is None or self._task.done():
            # An empty context: the task outlives the request that happens to start it.
            self._task = asyncio.get_running_loop().create_task(self._run(), context=Context())

    def abort(self, context: RequestContext) -> None:
        """End the sequence of *context* as cancelled at the next step; unknown ones are ignored."""
        for sequence in self._all():
            if sequence.context is context:
                sequence.leaving = True

    async def drained(self) -> None:
        """Wait until nothing is queued or running."""
        while self._task is not None and not self._task.done():
            await asyncio.wait((self._task,))

    async def shut(self, error: Callable[[], BackendError]) -> None:
        """Stop stepping and end every sequence with an *error* of its own; safe to repeat."""
        task, self._task = self._task, None
        if task is not None and not task.done() and task.get_loop().is_running():
            task.cancel()
            await asyncio.wait((task,))
        self._end_all(error)

    def _all(self) -> Iterator[Sequence]:
        return chain(self._waiting, self._prefilling, self._decoding)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        try:
            while True:
                self._admit()
                if not (self._prefilling or self._decoding):
                    return
                due += self._timing.step_s(len(self._decoding), self._prefill())
                due = max(due, loop.time())
                await asyncio.sleep(due - loop.time())
                self._deliver()
        except Exception as error:
            # Consumers must not wait for a scheduler that is gone.
            failure = error
            self._end_all(lambda: as_backend_error(failure))

    def _admit(self) -> None:
        """Move sequences from the queue into the batch, oldest first, as far as there is room."""
        waiting = self._waiting
        room = self._max_batch - len(self._prefilling) - len(self._decoding)
        while waiting and room > 0:
            sequence = waiting[0]
            needed = self._kv_used + sequence.kv_tokens
            if self._kv_limit is not None and needed > self._kv_limit:
                return
            waiting.popleft()
            self._kv_used = needed
            room -= 1
            (self._prefilling if sequence.prompt_left else self._decoding).append(sequence)

    def _prefill(self) -> int:
        """Hand this step's prompt budget to the oldest prompts; return how much of it is used."""
        budget = self._chunk
        for sequence in self._prefilling:
            part = min(sequence.prompt_left, budget)
            sequence.prompt_left -= part
            budget -= part
            if not budget:
                break
        return self._chunk - budget

    def _deliver(self) -> None:
        """End a step: one token to each decoding sequence, and those that are done leave."""
        if self._prefilling:
            self._advance_prefilled()
        if self._waiting:
            self._waiting = deque(self._staying(self._waiting))
        over = False
        for sequence in self._decoding:
            made = sequence.made + 1
            if made == sequence.target or sequence.leaving or sequence.context.is_stopped:
                over = self._settle(sequence, made) or over
            else:
                sequence.made = made
                waiter = sequence.waiter
                if waiter is not None:
                    sequence.waiter = None
                    if not waiter.done():
                        waiter.set_result(None)
        if over:
            self._decoding = [sequence for sequence in self._decoding if not sequence.ended]

    def _settle(self, sequence: Sequence, made: int) -> bool:
        """Decide the step of a sequence that may be over; return whether it is."""
        if sequence.wants_out():
            sequence.end()
        elif made < sequence.target:
            sequence.made = made
            sequence.wake()
            return False
        elif sequence.failure is not None:
            sequence.end(sequence.failure)
        else:
            sequence.made = made
            sequence.end()
        self._kv_used -= sequence.kv_tokens
        return True

    def _advance_prefilled(self) -> None:
        """Let finished prompts decode from this step on, and drop those that want out."""
        still: list[Sequence] = []
        for sequence in self._prefilling:
            if not sequence.prompt_left:
                self._decoding.append(sequence)
            elif sequence.wants_out():
                sequence.end()
                self._kv_used -= sequence.kv_tokens
            else:
                still.append(sequence)
        self._prefilling = still

    def _staying(self, waiting: deque[Sequence]) -> Iterator[Sequence]:
        for sequence in waiting:
            if sequence.wants_out():
                sequence.end()
            else:
                yield sequence

    def _end_all(self, error: Callable[[], BackendError]) -> None:
        for sequence in self._all():
            sequence.end(error())
        self._waiting.clear()
        self._prefilling.clear()
        self._decoding.clear()
        self._kv_used = 0
