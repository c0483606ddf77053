"""Fixtures for the tests of the operators."""

from __future__ import annotations

import pytest

from tests.operators._help import LIVES, Life


@pytest.fixture(params=LIVES, ids=lambda life: life.__name__)
def life(request: pytest.FixtureRequest) -> Life:
    """Give each way to run a list of operators, in turn."""
    return request.param
