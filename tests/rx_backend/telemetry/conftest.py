"""Nothing of the environment counts in a test of telemetry that the test has not set itself."""

from __future__ import annotations

import pytest

from rx_backend.telemetry import EXPORT_ENABLED


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove what the environment says about recording and logs."""
    for name in (
        EXPORT_ENABLED,
        "DYN_LOG",
        "DYN_LOGGING_JSONL",
        "DYN_LOGGING_CONSOLE_FORMAT",
    ):
        monkeypatch.delenv(name, raising=False)
