"""What the functions of `rx_backend.testing` refuse: the error names the option and what was expected."""

# Arguments are wrong here on purpose.
# pyright: reportArgumentType=false, reportCallIssue=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false, reportUnknownVariableType=false

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeAlias

import pytest
import reactivex

from rx_backend import InvalidArgument
from rx_backend.engines import SampleEngine
from rx_backend.testing import (
    Marbles,
    VirtualTimeLoop,
    align_marbles,
    assert_marbles,
    check_engine,
    engine_conformance_tests,
    load_engine_factory,
    parse_marbles,
    render_marbles,
    run_conformance,
    run_virtual,
)

NO_NUMBER = ("a", None, True, [1])
NO_TIME = (*NO_NUMBER, math.nan, math.inf, -1)
NO_FLAG = ("a", None, 1, 0.0)
NO_TEXT = (7, None, True, b"a")
NO_MAPPING = ("a", 7, [1])
NO_FUNCTION = ("a", 7, None)
NO_ERROR = ("a", 7, True)

MORE_SECONDS = "a number, more than 0 seconds"
MAPPING = "Mapping or None"
FAILURE = "Exception or type or None"


async def nothing() -> None: ...


def checked(**options: Any) -> object:
    return asyncio.run(check_engine(**{"factory": SampleEngine, **options}))


def conformance(**options: Any) -> object:
    return run_conformance(**{"factory": SampleEngine, **options})


def conformance_tests(**options: Any) -> object:
    return engine_conformance_tests(**{"factory": SampleEngine, **options})


def virtual(**options: Any) -> object:
    made = nothing()
    try:
        return run_virtual(**{"coroutine": made, **options})
    finally:
        made.close()


def expect(**options: Any) -> object:
    return Marbles().expect(**{"stream": reactivex.empty(), "result": "|", **options})


def record(**options: Any) -> object:
    return Marbles().record(**{"stream": reactivex.empty(), **options})


def asserted(**options: Any) -> object:
    given = {"operator": lambda source: source, "source": "-a|", "result": "-a|"}
    return assert_marbles(**{**given, **options})


Options: TypeAlias = list[tuple[str, Sequence[object], str]]

CONFORMANCE: Options = [
    ("factory", NO_FUNCTION, "a function"),
    ("request", ("a", None, 7, {}), "PreprocessedRequest"),
    ("timeout_s", (*NO_TIME, 0), MORE_SECONDS),
    ("stream_timeout_s", (*NO_TIME, 0), MORE_SECONDS),
]
REFUSED: dict[str, tuple[Callable[..., object], Options]] = {
    "check_engine": (checked, CONFORMANCE),
    "run_conformance": (conformance, [*CONFORMANCE, ("virtual", NO_FLAG, "True or False")]),
    "engine_conformance_tests": (
        conformance_tests,
        [*CONFORMANCE, ("virtual", NO_FLAG, "True or False")],
    ),
    "run_virtual": (
        virtual,
        [
            ("coroutine", ("a", 7, nothing), "Coroutine"),
            ("thread_grace_s", NO_TIME, "a number, at least 0 seconds"),
            ("in_thread", NO_FLAG, "True or False"),
        ],
    ),
    "VirtualTimeLoop": (
        VirtualTimeLoop,
        [("thread_grace_s", NO_TIME, "a number, at least 0 seconds")],
    ),
    "Marbles": (
        Marbles,
        [("values", NO_MAPPING, MAPPING), ("error", (*NO_ERROR, KeyError), "Exception or None")],
    ),
    "record": (
        record,
        [("stream", ("-a|", 7, None), "Observable"), ("drop", NO_TEXT, "a string")],
    ),
    "expect": (
        expect,
        [
            ("stream", ("-a|", 7, None), "Observable"),
            ("result", NO_TEXT, "a string"),
            ("error", NO_ERROR, FAILURE),
        ],
    ),
    "assert_marbles": (
        asserted,
        [
            ("operator", NO_FUNCTION, "a function"),
            ("source", NO_TEXT, "a string"),
            ("result", NO_TEXT, "a string"),
            ("values", NO_MAPPING, MAPPING),
            ("error", NO_ERROR, "Exception or None"),
            ("result_error", NO_ERROR, FAILURE),
            ("hot", NO_FLAG, "True or False"),
            ("subscriptions", (7, {}, True), "Sequence or None"),
        ],
    ),
    "parse_marbles": (
        lambda **options: parse_marbles(**{"line": "-a|", **options}),
        [
            ("line", NO_TEXT, "a string"),
            ("values", NO_MAPPING, MAPPING),
            ("error", NO_ERROR, FAILURE),
        ],
    ),
    "render_marbles": (
        lambda **options: render_marbles(**{"events": [], **options}),
        [
            ("events", (7, None), "Iterable"),
            ("values", NO_MAPPING, MAPPING),
            ("frames", (*NO_NUMBER, 1.5, -1), "a whole number, at least 0"),
        ],
    ),
    "align_marbles": (align_marbles, [("rows", (*NO_MAPPING, None), "Mapping")]),
}


@pytest.mark.parametrize(
    ("name", "call", "option", "value", "expected"),
    [
        pytest.param(name, call, option, value, expected, id=f"{name}-{option}-{value!r:.20}")
        for name, (call, options) in REFUSED.items()
        for option, values, expected in options
        for value in values
    ],
)
def test_invalid_arguments_are_rejected(
    name: str, call: Callable[..., object], option: str, value: object, expected: str
) -> None:
    """Before anything is begun."""
    with pytest.raises((TypeError, ValueError)) as refused:
        call(**{option: value})
    assert str(refused.value) == f"{name}: {option}: expected {expected}, got {value!r}"


def test_an_unknown_option_is_named() -> None:
    """The error has its name, and that of the function."""
    with pytest.raises(TypeError, match=r"run_conformance: got an unexpected keyword .*'timeout'"):
        run_conformance(SampleEngine, timeout=1)


def test_a_coroutine_that_is_not_run_is_closed() -> None:
    """Nothing warns of one that was never awaited."""
    made: Coroutine[Any, Any, None] = nothing()
    with pytest.raises(ValueError, match="thread_grace_s"):
        run_virtual(made, thread_grace_s=-1)
    with pytest.raises(RuntimeError, match="cannot reuse"):
        made.send(None)


def test_valid_arguments_are_accepted() -> None:
    """An engine's factory may be asynchronous; whole numbers are numbers."""

    async def made() -> SampleEngine:
        return SampleEngine()

    assert run_conformance(made, timeout_s=2, stream_timeout_s=30).ok


@pytest.mark.parametrize("target", NO_TEXT)
def test_an_engines_name_must_be_text(target: object) -> None:
    """As on the command line."""
    with pytest.raises(InvalidArgument, match="engine: expected module:name, got"):
        load_engine_factory(target)
