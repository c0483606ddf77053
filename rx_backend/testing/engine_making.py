"""Create the engine that a command line names, with its arguments."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from inspect import Parameter
from typing import Any, cast

import msgspec

from rx_backend.dynamo import from_any_engine
from rx_backend.engine import LLMEngine
from rx_backend.errors import BackendError, InvalidArgument
from rx_backend.testing.engine_loading import load_engine_factory

__all__ = ("EngineMaker", "engine_maker", "read_arguments")


class EngineMaker:
    """
    Creates engines that a command line names; returned by :func:`engine_maker`.

    Attributes:
        arguments: The keyword arguments of each call.
    """

    def __init__(
        self, target: str, factory: Callable[..., object], arguments: Mapping[str, Any]
    ) -> None:
        self.arguments = arguments
        self._target = target
        self._factory = factory
        self.__qualname__: str = getattr(factory, "__qualname__", target)

    def __call__(self) -> object:
        """Create an engine, as a factory of the conformance kit; the result may be an awaitable."""
        return self._factory(**self.arguments)

    def make(self) -> LLMEngine:
        """
        Create an engine, outside any event loop.

        Raises:
            InvalidArgument: Creating it raised an exception.
        """
        try:
            made = self()
            if inspect.isawaitable(made):
                made = asyncio.run(_result(made))
            return from_any_engine(made)
        except BackendError as error:
            raise InvalidArgument(f"engine {self._target}: {error.message}") from error
        except Exception as error:
            raise InvalidArgument(
                f"engine {self._target}: making it raised {type(error).__name__}: {error}"
            ) from error


def engine_maker(
    target: str, arguments: Sequence[str] = (), own_args: Sequence[str] = (), **offered: Any
) -> EngineMaker:
    """
    Return the factory of the engine that *target* names, with these arguments.

    Args:
        target: ``module:name`` of a class or a function, which may be async. An engine of Dynamo's
            is converted to ours.
        arguments: Its keyword arguments, in the form of :func:`read_arguments`.
        own_args: For its own parser, a class method ``from_args``, instead of *arguments*.
        **offered: More keyword arguments, for a factory with parameters of these names; None is
            omitted.

    Raises:
        InvalidArgument: *target* is not found, an argument is unknown, missing or given twice, or
            there is no ``from_args``.

    >>> maker = engine_maker("rx_backend.engines:SampleEngine", ["token_interval_ms=1"])
    >>> type(maker.make()).__name__
    'SampleEngine'
    """
    factory: Callable[..., object] = load_engine_factory(target)
    given = read_arguments(arguments)
    if own_args:
        if given:
            raise InvalidArgument("--engine-arg: no effect with arguments after --")
        return EngineMaker(target, _parser_of(target, factory, own_args), {})
    parameters = _parameters(factory)
    for name, value in offered.items():
        if value is None or parameters is None or name not in parameters:
            continue
        if name in given:
            flag = f"--{name.replace('_', '-')}"
            raise InvalidArgument(f"--engine-arg {name}: already given by {flag}")
        given[name] = value
    if parameters is not None:
        _check(target, parameters, given)
    return EngineMaker(target, factory, given)


def read_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """
    Parse keyword arguments: each value as JSON if it is valid JSON, else as text.

    Raises:
        InvalidArgument: One does not have the form ``name=value``, or a name is repeated.

    >>> read_arguments(["max_model_len=4096", "eager=true", "dtype=bfloat16", "ids=[1]"])
    {'max_model_len': 4096, 'eager': True, 'dtype': 'bfloat16', 'ids': [1]}
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InvalidArgument(f"--engine-arg: expected name=value, got {text!r}")
        if not name.isidentifier():
            raise InvalidArgument(
                f"--engine-arg: expected an argument's name with underscores, got {name!r}"
            )
        if name in found:
            raise InvalidArgument(f"--engine-arg {name}: given twice")
        try:
            found[name] = msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            # A path may have bytes that are not UTF-8.
            found[name] = value
    return found


def _parser_of(
    target: str, factory: Callable[..., object], own_args: Sequence[str]
) -> Callable[[], object]:
    from_args = getattr(factory, "from_args", None)
    if not callable(from_args):
        raise InvalidArgument(
            f"engine {target}: expected a method from_args for arguments after --: "
            f"{' '.join(own_args)}"
        )
    return lambda: from_args(list(own_args))


def _parameters(factory: Callable[..., object]) -> dict[str, Parameter] | None:
    """Return the parameters of a factory by name; None if they are unknown."""
    try:
        return dict(inspect.signature(factory).parameters)
    except (TypeError, ValueError):
        return None


def _check(target: str, parameters: Mapping[str, Parameter], given: Mapping[str, Any]) -> None:
    """Check the names of the arguments against the parameters."""
    by_name = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    known = {name: each for name, each in parameters.items() if each.kind in by_name}
    takes_any = any(each.kind is Parameter.VAR_KEYWORD for each in parameters.values())
    required = [name for name, each in known.items() if each.default is Parameter.empty]
    unknown = [] if takes_any else [name for name in given if name not in known]
    missing = [name for name in required if name not in given]
    for what, names in (("no argument", unknown), ("needs the argument", missing)):
        if names:
            shown = [f"{name} (required)" if name in required else name for name in known]
            takes = f"it takes {', '.join(shown)}" if shown else "it takes none"
            flag = " (--model-path)" if "model_path" in missing else ""
            raise InvalidArgument(f"engine {target}: {what} {', '.join(names)}{flag}; {takes}")


async def _result(made: object) -> object:
    return await cast("Awaitable[object]", made)
