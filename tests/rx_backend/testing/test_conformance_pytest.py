"""The conformance kit as tests."""

from __future__ import annotations

import pytest

from rx_backend.testing import ConformanceError, Rule, engine_conformance_tests
from tests.rx_backend.testing.broken_engines import GoodEngine, NoTerminal, StartRaises

test_good_engine = pytest.mark.rows("K1")(engine_conformance_tests(GoodEngine))

SUITE = """
from rx_backend.testing import engine_conformance_tests
from tests.rx_backend.testing.broken_engines import {engine}

test_conformance = engine_conformance_tests({engine})
"""


@pytest.mark.rows("K1")
def test_a_user_gets_one_test_per_rule(pytester: pytest.Pytester) -> None:
    """Two lines make a test for each rule, named after it; only the broken rule fails."""
    pytester.makepyfile(SUITE.format(engine="NoTerminal"))
    result = pytester.runpytest_inprocess("-p", "no:randomly", "-q", "-rA")
    result.assert_outcomes(passed=len(Rule) - 1, failed=1)
    result.stdout.fnmatch_lines(["*FAILED*::test_conformance[[]no_terminal[]]*"])
    result.stdout.fnmatch_lines(["*ended after 8 items without a terminal*"])


@pytest.mark.rows("K1")
def test_a_rule_that_was_not_tried_does_not_pass() -> None:
    """If the engine does not start, the rules that need it fail as not checked."""
    test = engine_conformance_tests(StartRaises)
    with pytest.raises(ConformanceError, match="no device"):
        test(Rule.START_FAILED)
    with pytest.raises(pytest.fail.Exception, match="not checked"):
        test(Rule.NO_CHUNK)
    test(Rule.UNSTARTED_CLEANUP_FAILED)


@pytest.mark.rows("K1")
def test_the_engine_is_checked_once() -> None:
    """All the tests of one engine share one run."""
    made: list[object] = []

    def make() -> NoTerminal:
        made.append(None)
        return NoTerminal()

    test = engine_conformance_tests(make)
    test(Rule.START_FAILED)
    test(Rule.NO_CHUNK)
    assert len(made) == 2
