"""
Write docs/reference.md: every public name, with the summary of its docstring.

That of a constant or a type alias is the string below its assignment. A name is listed once, under
the shortest path that it can be imported from.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
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
    return _first_paragraph(inspect.getdoc(thing) or "")


def _first_paragraph(text: str) -> str:
    paragraph = text.split("\n\n", maxsplit=1)[0].replace("\n", " ").strip()
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


def text_below(module: ModuleType, name: str) -> str:
    """Return the first paragraph of the string below the assignment of *name*, if there is one."""
    statements = ast.parse(inspect.getsource(module)).body
    for statement, below in pairwise([*statements, ast.Pass()]):
        match statement, below:
            case ast.ImportFrom(module=str(home), names=names), _:
                for alias in names:
                    if name == (alias.asname or alias.name):
                        return text_below(importlib.import_module(home), alias.name)
            case (
                ast.Assign(targets=[target]) | ast.AnnAssign(target=target),
                ast.Expr(ast.Constant(str(text))),
            ):
                if name in {one.id for one in ast.walk(target) if isinstance(one, ast.Name)}:
                    return _first_paragraph(text)
            case _:
                pass
    return ""


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
        rows: list[tuple[str, ...]] = []
        for name, value in names.items():
            kind, text = describe(value)
            if kind in {"constant", "value", "type"} and (below := text_below(module, name)):
                text = f"{text}: {below}" if kind == "constant" else below
            rows.append((f"`{name}`", kind, text))
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
    written = render()
    blank = [f"no description: {row}" for row in written.splitlines() if row.endswith("|  |")]
    sys.exit(publish(ROOT / "docs/reference.md", written, blank))
