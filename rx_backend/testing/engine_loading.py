"""Load an engine by a name such as ``package.module:Engine``."""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Callable
from typing import Any, cast

from rx_backend.errors import InvalidArgument
from rx_backend.pipeline import PipelineSource, check_pipeline, standard_pipeline

__all__ = ("load_engine_factory", "load_pipeline")


def load_engine_factory(target: str) -> Callable[[], object]:
    """
    Return the engine class, or the function that creates an engine, that *target* names.

    Args:
        target: ``module:name``; both may be dotted.

    Raises:
        InvalidArgument: *target* has another form, there is no such module or name, importing the
            module raised (the cause is that exception), or the object is not callable.

    >>> load_engine_factory("rx_backend.engines:SampleEngine").__name__
    'SampleEngine'
    """
    found = _load(target, "engine")
    if not callable(found):
        raise InvalidArgument(
            f"engine {target}: expected a class or a function that makes an engine, "
            f"got {type(found).__name__}"
        )
    return cast("Callable[[], object]", found)


def load_pipeline(target: str | None) -> PipelineSource:
    """
    Return the pipeline that *target* names, or the function that makes one from a scope.

    Args:
        target: ``module:name``; None for the standard pipeline.

    Raises:
        InvalidArgument: It can't be loaded, as in :func:`load_engine_factory`, or is neither.
    """
    if target is None:
        return standard_pipeline
    found = _load(target, "pipeline")
    check_pipeline(found, f"pipeline {target}")
    return cast("PipelineSource", found)


def _load(target: str, what: str) -> Any:
    """Return the object that *target* names; errors say *what* was expected."""
    is_text = isinstance(target, str)  # pyright: ignore[reportUnnecessaryIsInstance]
    module, _, path = target.partition(":") if is_text else ("", "", "")
    names = f"{module}.{path}".split(".")
    if module.endswith(".py") or not all(map(str.isidentifier, names)):
        hint = "; write the module without .py" if module.endswith(".py") else ""
        raise InvalidArgument(f"{what}: expected module:name, got {target!r}{hint}")
    try:
        return pkgutil.resolve_name(target)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module}.".startswith(f"{missing}."):
            problem = f"no module named {missing!r}"
        # A module whose import fails is not left in `sys.modules`.
        elif isinstance(error, AttributeError) and module in sys.modules:
            problem = str(error)
        else:
            problem = f"importing the module raised {type(error).__name__}: {error}"
        raise InvalidArgument(f"{what} {target}: {problem}") from error
