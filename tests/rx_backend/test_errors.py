"""`rx_backend.errors`: kinds, what exceptions become, and Dynamo's."""

from __future__ import annotations

import asyncio
import copy
import errno
import json
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from concurrent import futures
from importlib import import_module
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators import ContractViolation, IdleTimeout
from rx_backend import errors
from rx_backend.errors import (
    KINDS,
    BackendError,
    Cancelled,
    CannotConnect,
    Disconnected,
    EngineShutdown,
    InvalidArgument,
    ResponseTimeout,
    StreamIncomplete,
    Unknown,
    as_backend_error,
    causes,
    engine_failure,
    to_dynamo,
)

dynamo_errors = import_module("dynamo.llm.exceptions")

SHARED_KINDS = sorted(KINDS.keys() - {"ResponseTimeout"})
DYNAMO_ALONE = ["RouterQueueLimitExceeded", "SelectionServiceError", "WorkerUnavailable"]
SPECIAL = type("Special", (BackendError,), {"kind": "Special"})


class PromptTooLong(InvalidArgument):
    """A kind of one's own, with arguments of its own."""

    def __init__(self, tokens: int, *, limit: int) -> None:
        super().__init__(f"{tokens} tokens, at most {limit}")
        self.tokens = tokens


class Stubborn(Exception):
    """An exception that pickles and then can't be read back, as many libraries' do."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")


def chained(*chain: BaseException) -> BaseException:
    for error, cause in pairwise(chain):
        error.__cause__ = cause
    return chain[0]


@pytest.mark.rows("TY-errors", "S5", "S6")
def test_a_kind_has_its_texts() -> None:
    """There are nine; text, span form and class name follow from the kind, and a typed error stays."""
    assert len(KINDS) == 9
    assert set(KINDS) < set(errors.__all__)
    for kind, cls in KINDS.items():
        error = cls("it broke")
        assert getattr(errors, kind) is cls
        assert type(error).__name__ == error.kind == kind
        assert str(error) == f"Backend{kind}: it broke"
        assert error.span_kind == f"Backend({kind})"
        assert (error.message, error.args) == ("it broke", ("it broke",))
        assert as_backend_error(error) is engine_failure(error) is error
    special = PromptTooLong(9, limit=4)
    assert special.kind == "InvalidArgument"
    assert str(special) == "BackendInvalidArgument: 9 tokens, at most 4"


class ParserError(ValueError):
    """What a parser of somebody else's raises."""


class LostPeer(ConnectionResetError):
    """A library's own connection error."""


def http(code: int) -> Exception:
    """Make the runtime's HTTP error."""
    error: Exception = dynamo_errors.HttpError(code, "no")
    return error


# Untyped exceptions and their kinds.
UNTYPED: list[tuple[Callable[[], Exception], type[BackendError]]] = [
    (lambda: ValueError("too long"), InvalidArgument),
    (lambda: ParserError("bad"), Unknown),
    (lambda: json.JSONDecodeError("bad", "{", 1), Unknown),
    (lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), Unknown),
    (lambda: UnicodeError("bad"), Unknown),
    (lambda: msgspec.ValidationError("bad"), Unknown),
    (lambda: ContractViolation("bad"), Unknown),
    (lambda: ConnectionRefusedError("refused"), CannotConnect),
    (lambda: ConnectionError("gone"), Disconnected),
    (lambda: ConnectionResetError("reset"), Disconnected),
    (lambda: ConnectionAbortedError("aborted"), Disconnected),
    (lambda: BrokenPipeError("pipe"), Disconnected),
    (lambda: LostPeer("reset"), Disconnected),
    (lambda: OSError(errno.ECONNREFUSED, "refused"), CannotConnect),
    (lambda: OSError(errno.EPIPE, "pipe"), Disconnected),
    (lambda: OSError(errno.ENOSPC, "full"), Unknown),
    (lambda: asyncio.IncompleteReadError(b"", 4), Disconnected),
    (lambda: EOFError("end"), Unknown),
    (lambda: TimeoutError("late"), ResponseTimeout),
    (lambda: OSError(errno.ETIMEDOUT, "late"), ResponseTimeout),
    (lambda: IdleTimeout(3, tokens=1), ResponseTimeout),
    (lambda: RuntimeError("boom"), Unknown),
    (lambda: StopAsyncIteration("end"), Unknown),
    (lambda: futures.CancelledError("by the pool"), Unknown),
    (lambda: http(400), InvalidArgument),
    (lambda: http(503), CannotConnect),
]


# What is no error of a request, in a group as well.
INTERRUPTS = [KeyboardInterrupt, SystemExit, type("Interrupt", (BaseException,), {})]


@pytest.mark.rows("S6")
@pytest.mark.parametrize(("make", "kind"), UNTYPED, ids=lambda value: repr(value)[:20])
def test_an_untyped_exception_is_typed(
    make: Callable[[], Exception], kind: type[BackendError]
) -> None:
    """Its kind follows from its class, its text is the message and itself the cause."""
    exc = make()
    for convert in (as_backend_error, engine_failure):
        error = convert(exc)
        assert type(error) is kind
        assert error.message == str(exc)
        assert error.__cause__ is exc
    assert as_backend_error(RuntimeError()).message == "RuntimeError"


@pytest.mark.rows("S6")
@given(st.integers(0, 599))
def test_an_http_error_is_typed_by_its_status(code: int) -> None:
    """Failures that may work elsewhere or later differ from a bad request; the rest is Unknown."""
    special = {
        408: ResponseTimeout,
        429: CannotConnect,
        502: Disconnected,
        503: CannotConnect,
        504: ResponseTimeout,
    }
    error = as_backend_error(http(code))
    assert type(error) is special.get(code, InvalidArgument if 400 <= code < 500 else Unknown)
    assert error.message == f"HTTP {code}: no"


@pytest.mark.rows("S6")
def test_an_http_error_without_a_status_is_unknown() -> None:
    """A subclass that forgets its initialiser does no harm."""
    made = type("Http", (dynamo_errors.HttpError,), {"__init__": Exception.__init__})("no")
    assert type(as_backend_error(made)) is Unknown


@pytest.mark.rows("S6")
@pytest.mark.parametrize("interrupt", [asyncio.CancelledError, GeneratorExit, *INTERRUPTS])
def test_an_interrupt_is_raised_again(interrupt: type[BaseException]) -> None:
    """Never turned into an error; an interrupt is no engine's failure either."""
    exc = interrupt()
    for convert in (as_backend_error, engine_failure)[: 1 + (interrupt in INTERRUPTS)]:
        with pytest.raises(interrupt) as caught:
            convert(exc)
        assert caught.value is exc


@pytest.mark.rows("S6")
@pytest.mark.parametrize(
    ("exc", "message"),
    [
        (asyncio.CancelledError(), "the engine was cancelled from within"),
        (asyncio.CancelledError("pool"), "the engine was cancelled from within: pool"),
        (GeneratorExit(), "the engine raised GeneratorExit"),
    ],
    ids=repr,
)
def test_an_engine_that_cancels_itself_fails(exc: BaseException, message: str) -> None:
    """Where the puller was not cancelled, it is a failure like any other."""
    error = engine_failure(exc)
    assert (type(error), error.message, error.__cause__) == (Unknown, message, exc)


# Groups.


leaves: st.SearchStrategy[tuple[BaseException, type[BackendError]]] = (
    st.sampled_from(UNTYPED).map(lambda one: (one[0](), one[1]))
    | st.sampled_from(list(KINDS.values())).map(lambda kind: (kind("it broke"), kind))
    | st.sampled_from([asyncio.CancelledError, GeneratorExit]).map(lambda end: (end(), Unknown))
)


def nested(draw: st.DrawFn, inside: list[BaseException]) -> BaseException:
    """Make a group of the exceptions, in order, some of them in groups of their own."""
    if len(inside) > 1 and draw(st.booleans()):
        at = draw(st.integers(1, len(inside) - 1))
        inside = [nested(draw, inside[:at]), *inside[at:]]
    elif draw(st.booleans()):
        inside = [nested(draw, inside)]
    return BaseExceptionGroup("tasks", inside)


@pytest.mark.rows("S6")
@given(st.lists(leaves, min_size=1, max_size=5), st.data())
def test_a_group_is_of_the_kind_of_its_leaves(
    inside: list[tuple[BaseException, type[BackendError]]], data: st.DataObject
) -> None:
    """However deep they are; of several kinds it is Unknown. It says what they said."""
    group = data.draw(st.composite(lambda draw: nested(draw, [exc for exc, _ in inside]))())
    kinds = {kind for _, kind in inside}
    for convert in (as_backend_error, engine_failure):
        error = convert(group)
        assert type(error) is (kinds.pop() if len(kinds) == 1 else Unknown), kinds
        kinds = {kind for _, kind in inside}
        assert error.__cause__ is group
        assert error.message.startswith(engine_failure(inside[0][0]).message)


@pytest.mark.rows("S6")
@given(st.lists(leaves, max_size=3), st.sampled_from(INTERRUPTS), st.data())
def test_a_group_with_an_interrupt_is_raised_again(
    inside: list[tuple[BaseException, type[BackendError]]],
    interrupt: type[BaseException],
    data: st.DataObject,
) -> None:
    """An interrupt is not swallowed because tasks failed beside it."""
    at = data.draw(st.integers(0, len(inside)))
    excs = [exc for exc, _ in inside]
    excs.insert(at, interrupt())
    group = data.draw(st.composite(lambda draw: nested(draw, excs))())
    for convert in (as_backend_error, engine_failure):
        with pytest.raises(BaseExceptionGroup) as caught:
            convert(group)
        assert caught.value is group


@pytest.mark.rows("S6")
def test_groups_of_any_size() -> None:
    """Many texts are cut, each is said once; depth does not matter; a kind of one's own is Unknown."""
    many = [Disconnected(f"peer {number // 2}") for number in range(100)]
    assert as_backend_error(ExceptionGroup("g", many[:4])).message == "peer 0; peer 1"
    assert as_backend_error(ExceptionGroup("g", many)).message == "peer 0; peer 1; peer 2; ..."
    group: Any = Disconnected("gone")
    for _ in range(5000):
        group = ExceptionGroup("g", [group])
    assert type(as_backend_error(group)) is Disconnected
    assert type(as_backend_error(ExceptionGroup("g", [SPECIAL("odd")]))) is Unknown
    subclass = ExceptionGroup("g", [PromptTooLong(9, limit=4)])
    assert type(as_backend_error(subclass)) is InvalidArgument


# Causes and pickling.


def test_causes_come_nearest_first() -> None:
    """The chain of causes is what `raise ... from` made; a cycle is walked once."""
    inner, outer = KeyError("k"), RuntimeError("r")
    assert list(causes(chained(Unknown("u"), outer, inner))) == [outer, inner]
    assert not list(causes(Unknown("u")))
    first, second = Unknown("1"), Unknown("2")
    chained(first, second, first)
    assert list(causes(first)) == [second]
    assert pickle.loads(pickle.dumps(first)).__cause__.message == "2"


@pytest.mark.rows("TY-errors")
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_keeps_kind_message_and_causes(protocol: int) -> None:
    """An error comes out of another process as it went in, with all causes, those as text at least."""
    for kind in KINDS.values():
        local = type("Local", (Exception,), {})("gone")
        chain = chained(kind("it broke"), Cancelled("why"), KeyError("k"), Stubborn(5, "no"), local)
        error = pickle.loads(pickle.dumps(chain, protocol))
        assert (type(error), str(error)) == (kind, f"Backend{kind.kind}: it broke")
        assert [str(cause) for cause in causes(error)] == [
            *("BackendCancelled: why", "'k'"),
            *("BackendUnknown: Stubborn: 5 no", "BackendUnknown: Local: gone"),
        ]


def test_pickling_and_copying_keep_a_subclass_with_its_own_arguments() -> None:
    """An initialiser with other arguments is not in the way, and attributes come along."""
    error = PromptTooLong(9, limit=4)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is PromptTooLong
        assert (twin.tokens, str(twin)) == (9, str(error))


def test_a_traceback_shows_every_cause() -> None:
    """A logged error shows its text and where the original came from."""
    with pytest.raises(RuntimeError) as caught:
        raise RuntimeError("boom")
    text = "".join(traceback.format_exception(as_backend_error(caught.value)))
    assert "RuntimeError: boom" in text
    assert "rx_backend.errors.Unknown: BackendUnknown: boom" in text


# Dynamo's exceptions.


@pytest.mark.rows("TY-errors")
@pytest.mark.parametrize("kind", SHARED_KINDS)
def test_a_dynamo_exception_keeps_its_kind(kind: str) -> None:
    """Each becomes the error of its kind and stays as cause; both ways keep message and causes."""
    exc = getattr(dynamo_errors, kind)("it broke")
    typed = as_backend_error(exc)
    assert (type(typed), typed.message, typed.__cause__) == (KINDS[kind], "it broke", exc)
    error = chained(KINDS[kind]("it broke"), KeyError("k"))
    assert isinstance(error, BackendError)
    exc = to_dynamo(error)
    assert (type(exc), str(exc)) == (getattr(dynamo_errors, kind), "it broke")
    assert list(causes(exc)) == [error, error.__cause__]
    back = as_backend_error(exc)
    assert (type(back), back.message) == (type(error), error.message)
    special = type("Special", (getattr(dynamo_errors, kind),), {})
    assert as_backend_error(special("gone")).kind == kind


@pytest.mark.parametrize("name", [*DYNAMO_ALONE, "DynamoException"])
def test_a_dynamo_exception_without_counterpart_is_unknown(name: str) -> None:
    """Kinds that only Dynamo has are Unknown here, and themselves again on the way back."""
    exc = getattr(dynamo_errors, name)("it broke")
    error = as_backend_error(exc)
    assert (type(error), error.message) == (Unknown, "it broke")
    assert to_dynamo(error) is exc


def test_to_dynamo_takes_any_exception() -> None:
    """Dynamo's own pass through; untyped ones, and kinds that it lacks, take the nearest."""
    own = dynamo_errors.EngineShutdown("gone")
    assert to_dynamo(own) is own
    for error, kind in (
        (ValueError("bad"), "InvalidArgument"),
        (ResponseTimeout("late"), "ConnectionTimeout"),
        (SPECIAL("odd"), "Unknown"),
    ):
        assert type(to_dynamo(error)) is getattr(dynamo_errors, kind)


def test_an_error_raised_from_a_dynamo_exception_is_not_replaced_by_it() -> None:
    """An engine that reports more than its cause is not ignored."""
    error = chained(EngineShutdown("gpu lost"), dynamo_errors.Disconnected("gpu lost"))
    assert isinstance(error, BackendError)
    assert type(to_dynamo(error)) is dynamo_errors.EngineShutdown
    reworded = chained(StreamIncomplete("after 3 tokens"), dynamo_errors.StreamIncomplete("x"))
    assert isinstance(reworded, BackendError)
    assert str(to_dynamo(reworded)) == "after 3 tokens"


def test_without_the_package_the_import_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Conversion without ai-dynamo-runtime names the package and the extra."""
    monkeypatch.setitem(sys.modules, "dynamo.llm.exceptions", None)
    with pytest.raises(ImportError, match=r"ai-dynamo-runtime.*rx-backend\[dynamo\]"):
        to_dynamo(Unknown("u"))


@pytest.mark.parametrize(
    ("program", "printed"),
    [
        (
            (
                "import sys, rx_backend, rx_backend.protocols as p, rx_backend.errors as e;"
                "e.as_backend_error(OSError('x')); p.Annotated.from_error(ValueError('x'));"
                "print([name for name in sys.modules if name.partition('.')[0] == 'dynamo'])"
            ),
            "[]",
        ),
        (
            (
                "import sys, dynamo._core as core; from rx_backend.errors import as_backend_error;"
                "print(as_backend_error(core.Cancelled('c')).kind,"
                " 'dynamo.llm.exceptions' in sys.modules)"
            ),
            "Cancelled False",
        ),
    ],
    ids=["without", "by-its-other-name"],
)
def test_typing_an_exception_never_imports_dynamo(program: str, printed: str) -> None:
    """Nor does importing the library; exceptions taken from dynamo._core alone are known."""
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == printed
