"""
Write docs/reference.md: every public name, with the summary of its docstring.

A name is listed once, under the shortest path that it can be imported from.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from types import ModuleType

from tools.document import ROOT, publish, table

__all__ = ("PACKAGES", "describe", "listed", "public_modules", "render", "summary")

PACKAGES = ("operators", "rx_backend")


def public_modules() -> list[ModuleType]:
    """Import the packages and their public modules, in the order of their names."""
    names = list(PACKAGES)
    for package in PACKAGES:
        path = importlib.import_module(package).__path__
        names += [module.name for module in pkgutil.walk_packages(path, f"{package}.")]
    return [
        importlib.import_module(name)
        for name in sorted(names)
        if not any(part.startswith("_") for part in name.split("."))
    ]


def summary(thing: object) -> str:
    """Return the first paragraph of a docstring as one line of Markdown."""
    paragraph = (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ").strip()
    plain = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", paragraph)
    return plain.replace("``", "`").removesuffix(":")


def describe(value: object) -> tuple[str, str]:
    """Return the kind of *value*, and its description."""
    if inspect.ismodule(value):
        return "module", summary(value)
    if inspect.isclass(value):
        return ("error" if issubclass(value, BaseException) else "class"), summary(value)
    if inspect.isroutine(value):
        return "function", summary(value)
    if isinstance(value, str | int | float):
        return "constant", f"`{value!r}`"
    if type(value).__module__.split(".")[0] in PACKAGES:
        return "value", f"A `{type(value).__name__}`."
    return "type", ""


def listed() -> Iterator[tuple[ModuleType, dict[str, object]]]:
    """Yield each public module that has names which no module before it has, with these names."""
    seen: dict[str, object] = {}
    for module in public_modules():
        names: tuple[str, ...] = getattr(module, "__all__", ())
        new = {name: getattr(module, name) for name in names}
        new = {
            name: value
            for name, value in new.items()
            if name not in seen or seen[name] is not value
        }
        seen = new | seen
        if new:
            yield module, new


def render() -> str:
    """Return the document."""
    lines = ["# Public names", "", "Written by `make docs` from the docstrings.", "", _STABLE]
    for module, names in listed():
        rows = [(f"`{name}`", *describe(value)) for name, value in names.items()]
        lines += ["", f"## `{module.__name__}`", "", summary(module), ""]
        lines += table(("name", "kind", "what it is"), rows)
    return "\n".join(lines) + "\n"


_STABLE = """\
What a program may rely on, by [Semantic Versioning](https://semver.org/spec/v2.0.0.html): every name
on this page keeps what its docstring says until the next major version, `operators.assembly` until
the next minor one. That module is for whoever builds another adapter; an application needs
`operators`, `rx_backend`, and `operators.authoring` for operators of its own. Modules and names that
are not listed may change in any version."""


if __name__ == "__main__":
    sys.exit(publish(ROOT / "docs/reference.md", render(), []))
