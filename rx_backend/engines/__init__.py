"""
Engines, and the parts for your own.

- ``SampleEngine`` and ``SimulatedEngine`` need no model, accelerator or network.
- ``iterate_in_thread``, ``ThreadInbox`` and ``StepThread`` turn a blocking iterator, callbacks on
  threads, and a scheduler into streams.
- ``check_prompt``, ``check_options``, ``check_one_answer``, ``output_tokens`` and ``stop_token_ids``
  read a request.
"""

from rx_backend.engines.in_thread import iterate_in_thread
from rx_backend.engines.inbox import ThreadInbox
from rx_backend.engines.request_checks import (
    check_one_answer,
    check_options,
    check_prompt,
    output_tokens,
    stop_token_ids,
)
from rx_backend.engines.sample import SampleEngine
from rx_backend.engines.sequence import Load
from rx_backend.engines.simulated import SimulatedEngine
from rx_backend.engines.step_sequence import StepScheduler, StepSequence
from rx_backend.engines.step_thread import StepThread

__all__ = (
    "Load",
    "SampleEngine",
    "SimulatedEngine",
    "StepScheduler",
    "StepSequence",
    "StepThread",
    "ThreadInbox",
    "check_one_answer",
    "check_options",
    "check_prompt",
    "iterate_in_thread",
    "output_tokens",
    "stop_token_ids",
)
