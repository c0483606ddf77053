"""Find the engine that a text such as ``package.module:Engine`` names."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import cast

from rx_backend.errors import InvalidArgument

__all__ = (
    "EngineAttributeMissing",
    "EngineImportFailed",
    "EngineLoadError",
    "EngineModuleMissing",
    "EngineNotCallable",
    "load_engine_factory",
    "load_object",
)


class EngineLoadError(InvalidArgument):
    """A text names no engine; the kinds below say why."""


class EngineModuleMissing(EngineLoadError):
    """There is no such module."""


class EngineImportFailed(EngineLoadError):
    """The module is there but importing it raises; the cause is what it raised."""


class EngineAttributeMissing(EngineLoadError):
    """The module has no such name."""


class EngineNotCallable(EngineLoadError):
    """The name stands for something that can't be called to make an engine."""


def load_engine_factory(target: str) -> Callable[[], object]:
    """
    Return what *target* names: an engine class, or a function that makes an engine.

    Args:
        target: ``module:name``, both may be dotted.

    Raises:
        EngineModuleMissing: There is no such module.
        EngineImportFailed: Importing the module raised.
        EngineAttributeMissing: The module has no such name.
        EngineNotCallable: What it names can't be called.
        EngineLoadError: *target* is not of the form ``module:name``.

    >>> load_engine_factory("rx_backend.engines:SampleEngine").__name__
    'SampleEngine'
    """
    found = load_object(target)
    if not callable(found):
        raise EngineNotCallable(
            f"engine {target}: expected a class or a function that makes an engine, "
            f"got {type(found).__name__}"
        )
    return cast("Callable[[], object]", found)


def load_object(target: str, what: str = "engine") -> object:
    """
    Return the object that *target* names.

    Args:
        target: ``module:name``, both may be dotted.
        what: What it is meant to be, for the errors.

    Raises:
        EngineLoadError: As for :func:`load_engine_factory`.
    """
    module_name, _, path = target.partition(":")
    if not module_name or not path:
        raise EngineLoadError(f"{what}: expected module:name, got {target!r}")
    try:
        found: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            message = f"{what} {target}: no module named {error.name!r}"
            raise EngineModuleMissing(message) from error
        raise _import_failed(f"{what} {target}", error) from error
    except Exception as error:
        raise _import_failed(f"{what} {target}", error) from error
    where = module_name
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            message = f"{what} {target}: {where} has no {name!r}"
            raise EngineAttributeMissing(message) from error
        where = f"{where}.{name}"
    return found


def _import_failed(which: str, error: Exception) -> EngineImportFailed:
    return EngineImportFailed(
        f"{which}: importing the module raised {type(error).__name__}: {error}"
    )
