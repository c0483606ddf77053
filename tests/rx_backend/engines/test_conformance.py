"""Both engines keep to the contract, in every role that runs without a peer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from rx_backend.engine import LLMEngine
from rx_backend.engines import SampleEngine, SimulatedEngine
from rx_backend.testing import run_conformance


@pytest.mark.rows("E1", "E2", "E3", "E4", "E5")
@pytest.mark.parametrize(
    "factory",
    [
        SampleEngine,
        partial(SampleEngine, token_interval_ms=0),
        SimulatedEngine,
        partial(SimulatedEngine, max_batch=2, kv_tokens=5000),
        partial(SimulatedEngine, step_ms=0, step_ms_per_sequence=0, prefill_ms_per_token=0),
    ],
)
def test_conformance(factory: Callable[[], LLMEngine]) -> None:
    """The conformance kit finds nothing."""
    run_conformance(factory).raise_if_failed()
