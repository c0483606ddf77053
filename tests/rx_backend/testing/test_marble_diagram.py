"""Diagrams in docstrings are found and played."""

from __future__ import annotations

from typing import Any

import pytest
from reactivex import Observable
from reactivex import operators as ops

from rx_backend.testing import (
    MarbleError,
    MarbleMismatch,
    Marbles,
    read_diagrams,
    run_docstring_marbles,
)


def until(source: Observable[Any], other: Observable[Any]) -> Observable[Any]:
    """
    Stop with the other one.

    So::

        source  -a-b-c-|
        other   ----x
        result  -a-b|
        noted   what is below the result is commentary

    and when the other does nothing::

        source  -a-|
        other   ---
        result  -a-|

    Note:
        source: Rows elsewhere, such as this one, are none.
    """
    return source.pipe(ops.take_until(other))


def double(number: int) -> int:
    return 2 * number


def test_diagrams_are_found_among_prose() -> None:
    """Each block with a result is a diagram; rows above it go in, rows below are commentary."""
    first, second = read_diagrams(until.__doc__)
    assert first.inputs == {"source": "-a-b-c-|", "other": "----x"}
    assert first.result == "-a-b|"
    assert first.rows["noted"] == "what is below the result is commentary"
    assert second.result == "-a-|"


def test_diagrams_are_played() -> None:
    """Every diagram is run, with one Observable per input."""
    results = run_docstring_marbles(until, until.__doc__)
    assert [result.marbles for result in results] == ["-a-b|", "-a-|"]


def test_a_plain_operator_takes_the_source() -> None:
    """With one input the callable is an operator; letters and errors get their meaning."""
    doc = """Double::

        source  -a-#
        result  -b-#
    """
    boom = ValueError("boom")
    (result,) = run_docstring_marbles(ops.map(double), doc, values={"a": 1, "b": 2}, error=boom)
    assert result.error is boom


def test_a_false_diagram_is_a_mismatch() -> None:
    """A diagram that is not true fails."""
    with pytest.raises(MarbleMismatch):
        run_docstring_marbles(ops.skip(1), "source  -a-|\nresult  -a-|")


def test_a_test_of_its_own_can_play_a_diagram() -> None:
    """``play`` takes the clock and the values from the test's own ``Marbles``."""
    (diagram,) = read_diagrams("source  -a--b|\nresult  -x--y|")
    test = Marbles({"x": 1.0, "y": 4.0})

    def when(_: object) -> float:
        return test.clock()

    diagram.play(test, ops.map(when))


@pytest.mark.parametrize("doc", [None, "", "No diagram here.\n\nsource  -a-|"])
def test_a_docstring_without_a_diagram_is_an_error(doc: str | None) -> None:
    """Asking for diagrams that are not there is a mistake of the test."""
    with pytest.raises(MarbleError, match="no marble diagram"):
        run_docstring_marbles(ops.skip(1), doc)
