"""`rx_backend.checks`."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from rx_backend.checks import file_path, fraction, function, instance, integer, number, text
from rx_backend.errors import InvalidArgument

KIBS = partial(integer, low=1, unit="KiB")
UP_TO_5 = partial(integer, low=1, high=5)
SECONDS = partial(number, low=0, unit="seconds")
ABOVE_0 = partial(number, low=0, above=True)

WRONG: list[tuple[Callable[[str, object], object], list[object], str]] = [
    (KIBS, [0, -1, 1.0, True, None, "1"], "a whole number of KiB, 1 or more"),
    (UP_TO_5, [0, 6], "a whole number, 1 to 5"),
    (integer, [0.5, None, False], "a whole number"),
    (SECONDS, [-0.1, math.nan, math.inf, 10**400, True, "1"], "a number of seconds, 0 or more"),
    (ABOVE_0, [0, -0.0, -1], "a number, more than 0"),
    (number, [math.nan, math.inf, -math.inf, -(10**400), False], "a number, finite"),
    (fraction, [-0.1, 1.1, math.nan, True, "1"], "a number from 0 to 1"),
    (text, ["", " ", b"a", None], "a non-blank string"),
    (file_path, [b"a", 5, None], "a path"),
    (function, ["print", None, asyncio.sleep], "a function that is not async"),
    (partial(instance, kind=Path), ["a", None, Path], "a Path"),
]


@pytest.mark.parametrize(
    ("check", "value", "expected"),
    [(check, value, expected) for check, values, expected in WRONG for value in values],
)
def test_invalid_arguments_are_rejected(
    check: Callable[[str, object], object], value: object, expected: str
) -> None:
    """The error names the option, what was expected, and what was given."""
    with pytest.raises(InvalidArgument) as raised:
        check("this", value)
    assert raised.value.message == f"this: expected {expected}, got {value!r}"


@pytest.mark.parametrize(
    ("check", "values"),
    [
        (KIBS, [1, 10**400]),
        (UP_TO_5, [1, 5]),
        (integer, [-(10**400)]),
        (SECONDS, [0, 0.5]),
        (ABOVE_0, [1e-9]),
        (number, [-7, 0.0]),
        (fraction, [0, 0.5, 1]),
        (text, [" a "]),
        (file_path, [Path("a")]),
    ],
)
def test_valid_values_are_accepted(
    check: Callable[[str, object], object], values: list[object]
) -> None:
    """The bounds themselves too; the value is returned."""
    assert [check("this", value) for value in values] == values
