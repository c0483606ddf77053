"""What `rx_backend.pictures` refuses: the error names the argument and what was expected."""

# Arguments are wrong here on purpose.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from rx_backend.errors import InvalidArgument
from rx_backend.pictures import MarblePicture, MarbleRun, TracePicture

RUN = MarbleRun("-a-|")

REFUSED: list[tuple[Callable[..., object], dict[str, Any], str]] = [
    (TracePicture, {"spans": None}, "TracePicture: spans: expected Iterable, got None"),
    (TracePicture, {"spans": ["a"]}, "TracePicture: spans[0]: expected ReadableSpan, got 'a'"),
    (TracePicture, {"spans": [], "tokens": [7]}, "TracePicture: tokens: expected Mapping or None"),
    (MarblePicture, {"rows": 7}, "MarblePicture: rows: expected Iterable, got 7"),
    (MarblePicture, {"rows": ["a"]}, "MarblePicture: rows[0]: expected MarbleRow, got 'a'"),
    (MarblePicture, {"rows": [], "title": 7}, "MarblePicture: title: expected a string, got 7"),
    (MarblePicture, {"rows": [], "values": "a"}, "MarblePicture: values: expected Mapping or None"),
    (MarbleRun, {"line": None}, "MarbleRun: line: expected a string, got None"),
    (MarbleRun, {"line": "-a|", "values": "a"}, "MarbleRun: values: expected Mapping or None"),
    (MarbleRun, {"line": "-#", "error": KeyError}, "MarbleRun: error: expected Exception or None"),
    (RUN.input, {"name": None, "line": "-a"}, "input: name: expected a string, got None"),
    (RUN.input, {"name": "stop", "line": 7}, "input: line: expected a string, got 7"),
    (RUN.effect, {"name": ["abort"]}, "effect: name: expected a string, got ['abort']"),
    (RUN.pipe, {"drop": 7}, "drop: expected a string, got 7"),
    (RUN.fuse, {"drop": None}, "fuse: drop: expected a string, got None"),
    (RUN.fuse, {"consumer_delay": "3"}, "fuse: consumer_delay: expected a whole number, at least"),
    (RUN.pipe().save, {"path": None}, "path: expected a path, got None"),
]


@pytest.mark.parametrize(("called", "given", "message"), REFUSED)
def test_an_argument_of_another_type_is_named(
    called: Callable[..., object], given: dict[str, Any], message: str
) -> None:
    """When the picture is made, not in the words of what fails on it later."""
    with pytest.raises((TypeError, InvalidArgument), match=re.escape(message)):
        called(**given)
