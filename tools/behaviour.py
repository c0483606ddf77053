"""
Write docs/behaviour.md: the rows and the tests that pin them.

Rows and their summaries come from docs/rows.toml, the tests from the markers ``rows`` and
``reference`` in the sources of all tests, also of those that a run leaves out because they need a
model, a cluster or a browser. Nothing is imported for it.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import TypeAlias

from tools.document import ROOT, publish, table

__all__ = ("Named", "Rows", "collect", "load", "problems", "render")

Tests: TypeAlias = dict[str, set[str]]


@dataclass(frozen=True)
class Rows:
    """
    The rows to test.

    Attributes:
        sections: Title to rows, each a key and its summary.
        reference: Names of the reference adapter's tests.
    """

    sections: dict[str, dict[str, str]]
    reference: list[str]

    @property
    def keys(self) -> list[str]:
        """All row keys, in order."""
        return [key for rows in self.sections.values() for key in rows]


@dataclass(eq=False)
class Named:
    """
    What the tests name.

    Attributes:
        rows: Row key to the ids of its tests.
        reference: Name of a reference test to the ids of our tests.
    """

    rows: Tests = field(default_factory=lambda: defaultdict(set[str]))
    reference: Tests = field(default_factory=lambda: defaultdict(set[str]))

    def read(self, name: str, source: str) -> None:
        """
        Read the markers in a module of tests.

        Raises:
            ValueError: A marker's keys are no literals.
        """
        module = ast.parse(source)
        # `ROWS = pytest.mark.rows(...)` marks several tests of a module, as `@ROWS`.
        shared = {
            target.id: statement.value
            for statement in module.body
            if isinstance(statement, ast.Assign)
            for target in statement.targets
            if isinstance(target, ast.Name)
        }
        for test, decorators in _tests(module.body, name, []):
            for decorator in decorators:
                if isinstance(decorator, ast.Name):
                    decorator = shared.get(decorator.id, decorator)  # noqa: PLW2901
                self._note(decorator, test)

    def _note(self, decorator: ast.expr, test: str) -> None:
        match decorator:
            case ast.Call(func=ast.Attribute(attr="rows"), args=keys):
                named = self.rows
            case ast.Call(func=ast.Attribute(attr="reference"), args=keys):
                named = self.reference
            case _:
                return
        for key in keys:
            named[ast.literal_eval(key)].add(test)


def _tests(
    body: Iterable[ast.stmt], prefix: str, outer: list[ast.expr]
) -> Iterator[tuple[str, list[ast.expr]]]:
    """Yield the ids of tests, each with its decorators and those of its class."""
    for statement in body:
        match statement:
            case ast.ClassDef(name=name) if name.startswith("Test"):
                decorators = [*outer, *statement.decorator_list]
                yield from _tests(statement.body, f"{prefix}::{name}", decorators)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                if name.startswith("test"):
                    yield f"{prefix}::{name}", [*outer, *statement.decorator_list]
            case _:
                pass


def load() -> Rows:
    """Read docs/rows.toml."""
    content = tomllib.loads((ROOT / "docs/rows.toml").read_text(encoding="utf-8"))
    return Rows(content["rows"], content["reference"]["tests"])


def collect() -> Named:
    """Read all modules of tests."""
    named = Named()
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        named.read(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    return named


def problems(rows: Rows, named: Named) -> list[str]:
    """Return a line for each row without a test, and for each unknown row that a test names."""
    found: list[str] = []
    for what, known, tests in (
        ("row", rows.keys, named.rows),
        ("reference test", rows.reference, named.reference),
    ):
        found += [f"{what} {key} has no test" for key in known if key not in tests]
        found += [
            f"{what} {key} is not in docs/rows.toml, named by {test}"
            for key in sorted(tests.keys() - known)
            for test in sorted(tests[key])
        ]
    return found


def render(rows: Rows, named: Named) -> str:
    """Return the document."""
    lines = [
        "# Behaviour and its tests",
        "",
        "Written by `make docs` from [rows.toml](rows.toml) and the markers of the tests.",
        "A test names its rows with `@pytest.mark.rows(...)`. Those in `real` run on models, by",
        "`make test-engines` and `make test-vllm`.",
    ]
    for title, section in rows.sections.items():
        lines += ["", f"## {title}", ""]
        lines += table(
            ("row", "what holds", "tests"),
            [(key, text, _links(named.rows.get(key))) for key, text in section.items()],
        )
    lines += [
        "",
        "## Tests of the reference adapter",
        "",
        "The Dynamo runtime has an adapter of its own, written in Rust. These are the names of its",
        "tests, and ours for the same behaviour, marked with `@pytest.mark.reference(...)`.",
        "",
    ]
    lines += table(
        ("its test", "our tests"),
        [(f"`{name}`", _links(named.reference.get(name))) for name in rows.reference],
    )
    return "\n".join(lines) + "\n"


def _links(tests: set[str] | None) -> str:
    """Return the tests, by file, each file with a link."""
    parts = sorted(test.split("::", 1) for test in tests or ())
    return "<br>".join(
        f"[{path.removeprefix('tests/')}](../{path}): "
        + ", ".join(f"`{name.replace('::', '.')}`" for _, name in group)
        for path, group in groupby(parts, key=lambda part: part[0])
    )


if __name__ == "__main__":
    loaded, collected = load(), collect()
    path = ROOT / "docs/behaviour.md"
    sys.exit(publish(path, render(loaded, collected), problems(loaded, collected)))
