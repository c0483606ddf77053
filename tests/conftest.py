"""What every test gets: a watch for leaks, and spans of its own on request."""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
from collections.abc import Generator

import pytest
from hypothesis import settings

from tests.leaks import LeakWatch
from tests.spans import Spans

# A shared machine stalls now and then; a deadline per example would only find that. Everybody gets
# the same examples; RX_BACKEND_EXPLORE=1 looks for new ones.
settings.register_profile(
    "project", deadline=None, derandomize="RX_BACKEND_EXPLORE" not in os.environ
)
settings.load_profile("project")
# For the other Pythons, where it matters that a test runs: --hypothesis-profile=few.
settings.register_profile("few", max_examples=20)

_passed = pytest.StashKey[bool]()


def pytest_configure() -> None:
    """Hear Ctrl-C, and have the processes of tests hear it, where a shell's ``&`` switched it off."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of optional packages that are not installed; they import them inside."""
    left_out = [item for item in items if any(map(_is_missing, _needs(item)))]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _needs(item: pytest.Item) -> list[str]:
    return [package for mark in item.iter_markers("needs") for package in mark.args]


def _is_missing(package: str) -> bool:
    return importlib.util.find_spec(package) is None


def pytest_collection_finish() -> None:
    """Leave what importing made out of later garbage collections, of which each test makes one."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note whether a test passed."""
    report = yield
    if call.when == "call":
        item.stash[_passed] = report.passed
    return report


@pytest.fixture(autouse=True)
def leaks(request: pytest.FixtureRequest) -> Generator[LeakWatch]:
    """
    Fail a test that passed but left something behind; ``leaks.allow(pattern)`` makes exceptions.

    Of a test that failed nothing is asked: it could not clean up.
    """
    with LeakWatch() as watch:
        yield watch
        found = watch.leaks()
    # What a test imported or cached stays: later collections need not walk through it.
    gc.freeze()
    if found and request.node.stash.get(_passed, False):
        pytest.fail("the test left behind:\n  " + "\n  ".join(found), pytrace=False)


@pytest.fixture
def spans() -> Spans:
    """Give a tracer and the spans it made."""
    return Spans()
