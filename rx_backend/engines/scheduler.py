"""
Continuous batching in simulated time: what runs in a step, its duration, who gets a token.

One task per scheduler runs steps while there is work. It never waits for a consumer: a token is one
increment of a counter, plus one future if its consumer waits.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context
from itertools import chain

from rx_backend.context import RequestContext
from rx_backend.engines.sequence import Load, Sequence, Timing
from rx_backend.errors import BackendError, as_backend_error

__all__ = ("Scheduler",)


class Scheduler:
    """
    The batch, the queue before it, and the one task that steps through them.

    A step reads up to *prefill_chunk_tokens* of waiting prompts, oldest first, and generates one
    token for every decoding sequence. A prompt that is finished in a step yields its first token at
    the end of that step.

    Args:
        timing: The duration of a step.
        max_batch: Maximum of sequences in the batch.
        prefill_chunk_tokens: Maximum of prompt tokens in one step.
        kv_tokens: KV-cache size in tokens, None for no limit.
    """

    def __init__(
        self, timing: Timing, *, max_batch: int, prefill_chunk_tokens: int, kv_tokens: int | None
    ) -> None:
        self._timing = timing
        self._max_batch = max_batch
        self._chunk = prefill_chunk_tokens
        self._kv_limit = math.inf if kv_tokens is None else kv_tokens
        self._waiting: deque[Sequence] = deque()
        self._prefilling: list[Sequence] = []
        self._decoding: list[Sequence] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def load(self) -> Load:
        """The work that is queued and running."""
        return Load(
            waiting=len(self._waiting),
            prefilling=len(self._prefilling),
            decoding=len(self._decoding),
            kv_tokens=self._kv_used(),
        )

    @property
    def idle(self) -> bool:
        """Whether nothing is queued or running."""
        return not (self._waiting or self._prefilling or self._decoding)

    def submit(self, sequence: Sequence) -> None:
        """Queue *sequence*, in the running event loop."""
        self._waiting.append(sequence)
        if self._task is None or self._task.done():
            # An empty context: the task outlives the request that starts it.
            self._task = asyncio.get_running_loop().create_task(self._run(), context=Context())

    def abort(self, context: RequestContext) -> None:
        """End the sequence of *context* as cancelled at the next step, if there is one."""
        for sequence in self._all():
            if sequence.context is context:
                sequence.leaving = True

    async def drained(self) -> None:
        """Wait until nothing is queued or running."""
        while self._task is not None and not self._task.done():
            await asyncio.wait((self._task,))

    async def shut(self, error: Callable[[], BackendError]) -> None:
        """Stop stepping, and end every sequence with its own *error*. Idempotent."""
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
            # Consumers must not wait for a failed scheduler.
            failure = error
            self._end_all(lambda: as_backend_error(failure))

    def _admit(self) -> None:
        """Move sequences from the queue into the batch, oldest first, while there is room."""
        waiting = self._waiting
        if not waiting:
            return
        room = self._max_batch - len(self._prefilling) - len(self._decoding)
        kv_room = self._kv_limit - self._kv_used()
        while waiting and room > 0 and waiting[0].kv_tokens <= kv_room:
            sequence = waiting.popleft()
            room -= 1
            kv_room -= sequence.kv_tokens
            (self._prefilling if sequence.prompt_left else self._decoding).append(sequence)

    def _kv_used(self) -> int:
        return sum(sequence.kv_tokens for sequence in chain(self._prefilling, self._decoding))

    def _prefill(self) -> int:
        """Spend this step's prompt budget on the oldest prompts; return how much was spent."""
        budget = self._chunk
        for sequence in self._prefilling:
            part = min(sequence.prompt_left, budget)
            sequence.prompt_left -= part
            budget -= part
            if not budget:
                break
        return self._chunk - budget

    def _deliver(self) -> None:
        """End a step: give each decoding sequence a token, and remove those that are done."""
        if self._prefilling:
            self._decoding += [each for each in self._prefilling if not each.prompt_left]
            self._prefilling = [*_staying(each for each in self._prefilling if each.prompt_left)]
        if self._waiting:
            self._waiting = deque(_staying(self._waiting))
        over = False
        for sequence in self._decoding:
            made = sequence.output_tokens + 1
            if made == sequence.target or sequence.leaving or sequence.context.is_stopped:
                _settle(sequence, made)
                over = True
            else:
                sequence.output_tokens = made
                if sequence.waiter is not None:
                    sequence.wake()
        if over:
            self._decoding = [sequence for sequence in self._decoding if not sequence.ended]

    def _end_all(self, error: Callable[[], BackendError]) -> None:
        for sequence in self._all():
            sequence.end(error())
        self._waiting.clear()
        self._prefilling.clear()
        self._decoding.clear()


def _settle(sequence: Sequence, made: int) -> None:
    """Settle the step of a sequence that may be over."""
    if sequence.should_leave():
        sequence.end()
    elif made < sequence.target:
        sequence.output_tokens = made
        sequence.wake()
    elif sequence.failure is not None:
        sequence.end(sequence.failure)
    else:
        sequence.output_tokens = made
        sequence.end()


def _staying(sequences: Iterable[Sequence]) -> Iterator[Sequence]:
    """Yield those that stay; end those that were aborted, closed or stopped."""
    for sequence in sequences:
        if sequence.should_leave():
            sequence.end()
        else:
            yield sequence
