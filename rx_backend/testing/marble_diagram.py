"""Marble diagrams in docstrings, played as tests."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from reactivex import Observable

from rx_backend.testing.marble_line import MarbleError
from rx_backend.testing.marbles import MarbleResult, Marbles

__all__ = ("MarbleDiagram", "read_diagrams", "run_docstring_marbles")

_ROW = re.compile(r"^\s*(\w+)[^\S\n]{2,}(\S.*?)\s*$", re.MULTILINE)
_RESULT = "result"


@dataclass(frozen=True, slots=True)
class MarbleDiagram:
    """
    One diagram of a docstring.

    Attributes:
        rows: Name to line, in order. Those above ``result`` are inputs, those below commentary.
    """

    rows: Mapping[str, str]

    @property
    def result(self) -> str:
        """The expected output."""
        return self.rows[_RESULT]

    @property
    def inputs(self) -> Mapping[str, str]:
        """The rows above ``result``."""
        names = list(self.rows)
        return {name: self.rows[name] for name in names[: names.index(_RESULT)]}

    def play(
        self,
        test: Marbles,
        operator: Callable[..., Observable[Any]],
        *,
        error: Exception | type[Exception] | None = None,
    ) -> MarbleResult:
        """
        Play the inputs into *operator* and compare its output with ``result``.

        Args:
            test: Where to play it; its values are what the letters stand for.
            operator: Called with one Observable per input row, in order. The row ``source`` is
                cold, the others are hot.
            error: What ``#`` in the result stands for, see ``Marbles.expect``.

        Raises:
            MarbleMismatch: The output differs.
            MarbleError: A line can't be read.
        """
        sources = [
            test.cold(line) if name == "source" else test.hot(line)
            for name, line in self.inputs.items()
        ]
        return test.expect(operator(*sources), self.result, error=error)


def read_diagrams(docstring: str | None) -> list[MarbleDiagram]:
    """
    Return the diagrams of a docstring.

    A diagram is a block between blank lines with rows ``name  line``, two blanks or more between
    them, one of which is named ``result``.
    """
    blocks = re.split(r"\n\s*\n", inspect.cleandoc(docstring or ""))
    rows = [dict(_ROW.findall(block)) for block in blocks]
    return [MarbleDiagram(each) for each in rows if _RESULT in each]


def run_docstring_marbles(
    operator: Callable[..., Observable[Any]],
    docstring: str | None,
    *,
    values: Mapping[str, Any] | None = None,
    error: Exception | None = None,
) -> list[MarbleResult]:
    """
    Play every diagram of a docstring.

    Args:
        operator: See ``MarbleDiagram.play``.
        docstring: Usually the ``__doc__`` of the function that makes the operator.
        values: What letters stand for.
        error: What ``#`` in a source stands for.

    Raises:
        MarbleMismatch: The output of a diagram differs.
        MarbleError: A line can't be read, or there is no diagram.

    >>> def pairs():
    ...     '''Join neighbours::
    ...
    ...         source  -a-b-c-|
    ...         result  ---p-q-|
    ...     '''
    ...     from reactivex import operators as ops
    ...     return ops.pairwise()
    >>> values = {"p": ("a", "b"), "q": ("b", "c")}
    >>> [result.marbles for result in run_docstring_marbles(pairs(), pairs.__doc__, values=values)]
    ['---p-q-|']
    """
    diagrams = read_diagrams(docstring)
    if not diagrams:
        raise MarbleError("the docstring has no marble diagram: no block with a row 'result'")
    return [diagram.play(Marbles(values, error=error), operator) for diagram in diagrams]
