"""How soon the runtime's threads get a turn."""

from __future__ import annotations

import sys

from rx_backend.worker.interpreter import switching_within


def test_the_interval_is_shorter_inside_and_as_before_after() -> None:
    """The process is left as it was found; an interval that is shorter already stays."""
    before = sys.getswitchinterval()
    with switching_within(0.0002):
        assert sys.getswitchinterval() < 0.0003
        with switching_within(0.001):
            assert sys.getswitchinterval() < 0.0003
    assert sys.getswitchinterval() == before
