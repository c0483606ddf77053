"""Fixtures for the tests of the operators."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import pytest

from rx_backend.testing import VirtualTimeLoop, run_virtual
from tests.operators._help import LIVES, Life


def pytest_itemcollected(item: pytest.Item) -> None:
    """Run the tests that are coroutine functions in virtual time."""
    if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
        test = item.obj

        @functools.wraps(test)
        def run(**arguments: Any) -> None:
            run_virtual(test(**arguments))

        item.obj = run


@pytest.fixture(params=LIVES, ids=lambda life: life.__name__)
def life(request: pytest.FixtureRequest) -> Life:
    """Give each way to run a list of operators, in turn."""
    return request.param


@pytest.fixture
def timers(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Give the times of all timers that are set on a virtual loop."""
    times: list[float] = []
    call_at = VirtualTimeLoop.call_at

    def noting(loop: VirtualTimeLoop, when: float, *args: Any, **options: Any) -> Any:
        times.append(when)
        return call_at(loop, when, *args, **options)

    monkeypatch.setattr(VirtualTimeLoop, "call_at", noting)
    return times
