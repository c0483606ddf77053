"""The step thread's work: requests to transformers' continuous batching, and its outputs."""

from __future__ import annotations

import itertools
from typing import Any, Final

from rx_backend.engines.step_sequence import StepSequence
from rx_backend.engines.stepped_engine import CheckedRequest
from rx_backend.engines.transformers.sampling import Sampling
from rx_backend.errors import Disconnected, Unknown
from rx_backend.protocols import FinishReason, LLMEngineOutput

__all__ = ("BatchingScheduler",)

_WAIT_S: Final = 0.01
"""How long a step waits for tokens, and a new or stopped request for the step."""


class BatchingScheduler:
    """
    Passes requests to a manager, which has its own thread, and its outputs to their sequences.

    The `StepSequence.state` is a `CheckedRequest`.

    Args:
        manager: A running ``ContinuousBatchingManager``.
        sampling: The model's own options.
    """

    def __init__(self, manager: Any, sampling: Sampling) -> None:
        self._manager = manager
        self._sampling = sampling
        self._numbers = itertools.count(1)
        self._ids: dict[StepSequence, str] = {}
        self._running: dict[str, StepSequence] = {}

    def admit(self, sequence: StepSequence) -> None:
        """Queue a request in the manager."""
        checked: CheckedRequest = sequence.state
        self._check_alive()
        request_id = self._ids[sequence] = str(next(self._numbers))
        self._running[request_id] = sequence
        self._manager.add_request(
            checked.prompt,
            request_id,
            max_new_tokens=checked.limit,
            streaming=True,
            eos_token_id=sorted(checked.stop),
            **self._sampling.options(sequence.request.sampling_options),
        )

    def step(self, sequences: list[StepSequence]) -> None:
        """Emit the manager's outputs since the last step, or wait briefly for them."""
        output = self._manager.get_result(timeout=_WAIT_S)
        while output is not None:
            # A cancelled request may have outputs left.
            sequence = self._running.get(output.request_id)
            if sequence is not None:
                self._emit(sequence, output)
            output = self._manager.get_result(timeout=0)
        self._check_alive()

    def release(self, sequence: StepSequence) -> None:
        """Remove a request from the batch before the manager's next step, unless it has ended."""
        request_id = self._ids.pop(sequence)
        del self._running[request_id]
        if self._manager.is_running():
            self._manager.cancel_request(request_id)

    def _emit(self, sequence: StepSequence, output: Any) -> None:
        if output.error is not None:
            self._check_alive(output.error)
            sequence.fail(Unknown(f"transformers: {output.error}"))
            return
        checked: CheckedRequest = sequence.state
        # An output has all tokens so far.
        chunk = LLMEngineOutput(output.generated_tokens[sequence.output_tokens :])
        if output.is_finished():
            is_end = not checked.stop.isdisjoint(output.generated_tokens[-1:])
            chunk.finish_reason = FinishReason.STOP if is_end else FinishReason.LENGTH
        sequence.emit(chunk)

    def _check_alive(self, told: str | None = None) -> None:
        """Raise `Disconnected` if the manager's thread has died, or is about to."""
        status = self._manager.background_thread_status
        if status.can_accept_new_requests() is not None:
            raise Disconnected(
                f"the batching thread of transformers has died: {told or status.fatal_error}"
            )
