"""Load the engine that a text such as ``package.module:Engine`` names."""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Callable
from typing import Any, cast

from operators import Pipeline
from rx_backend.errors import InvalidArgument
from rx_backend.pipeline import PipelineSource, standard_pipeline

__all__ = (
    "EngineAttributeMissing",
    "EngineImportFailed",
    "EngineLoadError",
    "EngineModuleMissing",
    "EngineNotCallable",
    "load_engine_factory",
    "load_object",
    "load_pipeline",
)


class EngineLoadError(InvalidArgument):
    """A text names no engine; the subclasses say why."""


class EngineModuleMissing(EngineLoadError):
    """There is no such module."""


class EngineImportFailed(EngineLoadError):
    """The module exists but importing it raises; the cause is what it raised."""


class EngineAttributeMissing(EngineLoadError):
    """The module has no such name."""


class EngineNotCallable(EngineLoadError):
    """The name refers to something that can't be called to make an engine."""


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


def load_pipeline(target: str | None) -> PipelineSource:
    """
    Return the pipeline that *target* names, or the function that makes a request's from its scope.

    Args:
        target: ``module:name``; None for the standard pipeline.

    Raises:
        InvalidArgument: It can't be loaded, as for :func:`load_engine_factory`, or is neither.
    """
    if target is None:
        return standard_pipeline
    found = load_object(target, "pipeline")
    if isinstance(found, Pipeline) or callable(found):
        return cast("PipelineSource", found)
    raise InvalidArgument(
        f"pipeline {target}: expected a Pipeline, or a function that returns one from a "
        f"request's scope, got {type(found).__name__}"
    )


def load_object(target: str, what: str = "engine") -> Any:
    """
    Return the object that *target* names; *what* it is meant to be is part of the errors.

    Raises:
        EngineLoadError: As for :func:`load_engine_factory`.
    """
    module, _, path = target.partition(":")
    if not module or not path:
        raise EngineLoadError(f"{what}: expected module:name, got {target!r}")
    try:
        return pkgutil.resolve_name(target)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module}.".startswith(f"{missing}."):
            message = f"{what} {target}: no module named {missing!r}"
            raise EngineModuleMissing(message) from error
        # A module whose import fails is not left in `sys.modules`.
        if isinstance(error, AttributeError) and module in sys.modules:
            raise EngineAttributeMissing(f"{what} {target}: {error}") from error
        raise EngineImportFailed(
            f"{what} {target}: importing the module raised {type(error).__name__}: {error}"
        ) from error
