"""Checking the arguments of operators when an operator is made."""

from __future__ import annotations

import contextlib
import inspect
import math
import types
import typing
import weakref
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Final, Literal, ParamSpec, TypeAlias, Unpack, cast

__all__ = ("CHECKED", "AtLeast", "Seconds", "check_arguments", "described")

P = ParamSpec("P")

Description: TypeAlias = tuple[inspect.Signature, Mapping[str, Any]]

# An operator may be defined in a function, and refer to its locals: keep no reference.
_known: weakref.WeakKeyDictionary[Callable[..., object], Description] = weakref.WeakKeyDictionary()


class AtLeast:
    """
    A lower bound for a number in a signature: ``limit: Annotated[int, AtLeast(1)]``.

    Args:
        bound: The lowest allowed value, or with *above* the highest value that is too low.
        above: Whether *bound* itself is too low.
        unit: The unit, for the error message.
    """

    def __init__(self, bound: float, unit: str = "", *, above: bool = False) -> None:
        self.bound = bound
        self.unit = unit
        self.above = above

    def __str__(self) -> str:
        how = "more than" if self.above else "at least"
        return f"{how} {self.bound} {self.unit}".strip()

    def admits(self, value: float) -> bool:
        """Return whether *value* is finite and in bounds."""
        if isinstance(value, float) and not math.isfinite(value):
            return False
        return value > self.bound if self.above else value >= self.bound


Seconds: TypeAlias = Annotated[float, AtLeast(0, "seconds", above=True)]
"""A positive number of seconds."""

CHECKED: Final = object()
"""Marks an argument whose class is checked: ``request: Annotated[Request, CHECKED]``."""


def check_arguments(function: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None:
    """
    Check the arguments of an operator, or of a class, against its annotated signature.

    Numbers, strings, flags, literals and functions are checked, including `AtLeast` bounds and
    whether a function may be async; other types are left to the type checker unless marked
    `CHECKED`. Each of ``*args`` and ``**kwargs`` is checked, as are the options of an unpacked
    ``TypedDict``.

    Raises:
        TypeError: An argument is missing, unknown, or of the wrong type.
        ValueError: A number is out of bounds, or a literal is not allowed.
    """
    signature, hints = described(function)
    name = function.__name__
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None
    for option, value in bound.arguments.items():
        parameter = signature.parameters[option]
        hint = hints.get(option)
        if hint is None or value is parameter.default:
            continue
        if typing.get_origin(hint) is Unpack and parameter.kind is parameter.VAR_KEYWORD:
            _check_options(name, typing.get_args(hint)[0], value)
        elif parameter.kind is parameter.VAR_KEYWORD:
            for each, given in value.items():
                _check(f"{name}: {each}", hint, given)
        elif parameter.kind is parameter.VAR_POSITIONAL:
            for place, given in enumerate(value):
                _check(f"{name}: {option}[{place}]", hint, given)
        else:
            _check(f"{name}: {option}", hint, value)


def _check_options(name: str, options: Any, given: Mapping[str, object]) -> None:
    known = typing.get_type_hints(options, include_extras=True)
    for option, value in given.items():
        if option not in known:
            raise TypeError(f"{name}: got an unexpected keyword argument {option!r}")
        _check(f"{name}: {option}", known[option], value)


def described(function: Callable[..., object]) -> Description:
    """Return a function's signature, and those of its parameters' types that can be resolved."""
    found = _known.get(function)
    if found is None:
        found = _known[function] = _describe(function)
    return found


def _describe(function: Callable[..., object]) -> Description:
    called: Any = function.__init__ if isinstance(function, type) else function
    names: dict[str, Any] = getattr(inspect.unwrap(called), "__globals__", {})
    hints: dict[str, Any] = {}
    for option, annotation in inspect.get_annotations(called).items():
        one = types.SimpleNamespace(__annotations__={option: annotation})
        # Some names exist only for the type checker.
        with contextlib.suppress(NameError, TypeError, AttributeError):
            hints |= typing.get_type_hints(one, names, include_extras=True)
    return inspect.signature(function), hints


def _check(where: str, hint: Any, value: object) -> None:
    if inspect.iscoroutinefunction(value) and _takes_no_async(hint):
        raise TypeError(f"{where}: expected a function that is not async, got {value!r}")
    wanted = _members(hint)
    if not all(map(_can_be_checked, wanted)) or any(_fits(each, value) for each in wanted):
        return
    expected = " or ".join(dict.fromkeys(_described_type(each) for each in wanted))
    is_literal = any(typing.get_origin(each) is Literal for each in wanted)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    has_bounds = any(map(_bounds, wanted))
    kind = ValueError if is_literal or (has_bounds and is_number) else TypeError
    raise kind(f"{where}: expected {expected}, got {value!r}")


def _can_be_checked(hint: Any) -> bool:
    base = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    is_simple = base in _SIMPLE or typing.get_origin(base) is Literal or _is_callable(base)
    return is_simple or CHECKED in _metadata(hint)


def _metadata(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint)[1:] if typing.get_origin(hint) is Annotated else ()


def _bounds(hint: Any) -> list[AtLeast]:
    return [each for each in _metadata(hint) if isinstance(each, AtLeast)]


def _is_callable(hint: Any) -> bool:
    return typing.get_origin(hint) is Callable


def _takes_no_async(hint: Any) -> bool:
    """Return whether only functions that are not async are allowed."""
    functions = [each for each in _members(hint) if _is_callable(each)]
    returned = [(typing.get_args(each) or (Any,))[-1] for each in functions]
    return bool(functions) and not any(each is Any or _is_awaitable(each) for each in returned)


def _members(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in {typing.Union, types.UnionType}
    return typing.get_args(hint) if is_union else (hint,)


def _is_awaitable(hint: Any) -> bool:
    if len(_members(hint)) > 1:
        return any(map(_is_awaitable, _members(hint)))
    origin = typing.get_origin(hint) or hint
    return isinstance(origin, type) and issubclass(origin, Awaitable)


def _fits(hint: Any, value: object) -> bool:
    if typing.get_origin(hint) is Annotated:
        base, bounds = typing.get_args(hint)[0], _bounds(hint)
        return _fits(base, value) and all(each.admits(cast("float", value)) for each in bounds)
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if _is_callable(hint):
        return callable(value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, typing.get_origin(hint) or hint)


def _described_type(hint: Any) -> str:
    if typing.get_origin(hint) is Annotated:
        return ", ".join([_described_type(typing.get_args(hint)[0]), *map(str, _bounds(hint))])
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    if _is_callable(hint):
        return "a function"
    return _NAMES.get(hint, getattr(hint, "__name__", str(hint)))


# No set: the type of ``*args: P.args`` can't be hashed.
_SIMPLE: tuple[Any, ...] = (int, float, str, bool, type(None))
_NAMES: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a string",
    bool: "True or False",
    type(None): "None",
}
