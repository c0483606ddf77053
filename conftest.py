"""What pytest needs to know of the whole project: how documents are tested."""

from __future__ import annotations

import time
from collections.abc import Generator

import pytest
import structlog
from sybil import Sybil
from sybil.integration.pytest import SybilItem
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

pytest_plugins = ["pytester", "tests.otlp.receiver"]

# The Python blocks of a document run from top to bottom and share their names.
pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()], patterns=["README.md", "docs/*.md"]
).pytest()


@pytest.fixture(autouse=True)
def _structlog_as_it_was() -> Generator[None]:
    """Undo what a test, or structlog's own `capture_logs`, has configured."""
    yield
    if structlog.is_configured():
        structlog.reset_defaults()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Fail a test that took too long, also where a task has caught what was raised at its time-out."""
    marker = item.get_closest_marker("timeout")
    limit_s = float(marker.args[0] if marker else item.config.getini("timeout"))
    began = time.monotonic()
    yield
    # The time-out's own clock starts a little earlier.
    if time.monotonic() - began > limit_s * 0.99:
        pytest.fail(f"it took {limit_s} s, its time-out")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the blocks of documents back in order after they were shuffled with the tests."""
    places = [place for place, item in enumerate(items) if isinstance(item, SybilItem)]
    blocks = sorted((items[place] for place in places), key=lambda item: item.location[:2])
    for place, block in zip(places, blocks, strict=True):
        items[place] = block
