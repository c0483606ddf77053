"""Marble diagrams in docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from reactivex import Observable

from rx_backend.testing import MarbleResult, Marbles

__all__ = ("MarbleDiagram", "read_diagrams")

_ROW = re.compile(r"^\s*(\w+)[^\S\n]{2,}(\S.*?)\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class MarbleDiagram:
    """One diagram: its lines by name. Those above ``result`` are inputs, those below commentary."""

    rows: Mapping[str, str]

    @property
    def inputs(self) -> Mapping[str, str]:
        """The rows above ``result``."""
        names = list(self.rows)
        return {name: self.rows[name] for name in names[: names.index("result")]}

    def play(self, test: Marbles, operator: Callable[..., Observable[Any]]) -> MarbleResult:
        """
        Play the inputs into *operator*, and compare its output with ``result``.

        Args:
            test: Where to play it; its values are what the letters stand for.
            operator: Called with one Observable per input row, in order. The row ``source`` is
                cold, the others are hot.
        """
        sources = [
            test.cold(line) if name == "source" else test.hot(line)
            for name, line in self.inputs.items()
        ]
        return test.expect(operator(*sources), self.rows["result"])


def read_diagrams(docstring: str | None) -> list[MarbleDiagram]:
    """
    Return the diagrams of a docstring.

    A diagram is a block between blank lines with rows ``name  line``, two blanks or more between
    them, one of which is named ``result``.
    """
    blocks = re.split(r"\n\s*\n", inspect.cleandoc(docstring or ""))
    rows = [dict(_ROW.findall(block)) for block in blocks]
    return [MarbleDiagram(each) for each in rows if "result" in each]
