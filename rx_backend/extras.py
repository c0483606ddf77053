"""Import an extra's packages, or name the missing extra."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ("import_extra", "missing_extra")


def import_extra(module: str, extra: str, *, package: str, needed_by: str, hint: str = "") -> Any:
    """
    Import an optional module.

    Args:
        module: Its full name, as in "dynamo.llm".
        extra: The extra of rx-backend that includes it.
        package: The package that contains it.
        needed_by: The feature that needs it, the subject of the message.
        hint: Added to the message.

    Raises:
        ImportError: It is not installed (see `missing_extra`), or it is and fails to import.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # installed, but one of its own dependencies is not
        raise missing_extra(extra, package=package, needed_by=needed_by, hint=hint) from error


def missing_extra(extra: str, *, package: str, needed_by: str, hint: str = "") -> ImportError:
    """Return an error that says in one line what to install for *needed_by*."""
    return ImportError(
        f"{needed_by} needs the package {package}: pip install 'rx-backend[{extra}]'{hint}"
    )
