"""Generated documents are true, and every row has a test."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.behaviour import Named, Rows, problems, render
from tools.snippets import check, documents, module_of

ROOT = Path(__file__).parents[1]

ROWS = Rows({"Shapes": {"R1": "Round.", "R2": "Square."}}, ["rolls"])


@pytest.mark.timeout(90)
@pytest.mark.parametrize("document", ["behaviour", "dashboard", "reference"])
def test_generated_document_is_current(document: str) -> None:
    """The document is what `make docs` writes; of the behaviour, every row has a test."""
    done = subprocess.run(
        [sys.executable, "-m", f"tools.{document}", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


MARKED = """
ROWS = pytest.mark.rows("R1", "R2")

@ROWS
@pytest.mark.reference("rolls")
async def test_x(): ...

@pytest.mark.rows("R3")
class TestAll:
    @pytest.mark.rows("R1")
    @pytest.mark.parametrize("a", [1])
    def test_y(self, a): ...

    def helper(self): ...
"""


def test_markers_are_read_from_the_sources_of_tests() -> None:
    """Those of a test, of its class, and those that several tests share by a name."""
    named = Named()
    named.read("t.py", MARKED)
    x, y = "t.py::test_x", "t.py::TestAll::test_y"
    assert (named.rows, named.reference) == ({"R1": {x, y}, "R2": {x}, "R3": {y}}, {"rolls": {x}})


def test_missing_and_unknown_rows_are_problems() -> None:
    """A row without a test is reported, and so is a test of an unknown row."""
    tests = Named({"R1": {"tests/test_a.py::test_x"}, "R9": {"tests/test_a.py::test_y"}}, {})
    assert problems(ROWS, tests) == [
        "row R2 has no test",
        "row R9 is not in docs/rows.toml, named by tests/test_a.py::test_y",
        "reference test rolls has no test",
    ]


def test_rows_lead_to_their_tests() -> None:
    """The table links each row to its tests, file by file."""
    tests = Named(
        {"R1": {"tests/b/test_b.py::TestB::test_z", "tests/test_a.py::test_x"}},
        {"rolls": {"tests/test_a.py::test_x"}},
    )
    text = render(ROWS, tests)
    in_a = "[test_a.py](../tests/test_a.py): `test_x`"
    in_b = "[b/test_b.py](../tests/b/test_b.py): `TestB.test_z`"
    assert f"| R1 | Round. | {in_b}<br>{in_a} |" in text
    assert "| R2 | Square. |  |" in text
    assert f"| `rolls` | {in_a} |" in text


@pytest.mark.timeout(120)
def test_wrong_types_in_a_document_are_reported_by_line(tmp_path: Path) -> None:
    """Both type checkers look at its blocks, which share their names."""
    document = tmp_path / "guide.md"
    document.write_text("# Guide\n\n```python\nx = 1\n```\n\nThen:\n\n```python\ny: str = x\n```\n")
    said = check([document])
    assert said.count("guide.md:10") == 2, said


def test_readme_shows_what_its_pipeline_is_drawn_as() -> None:
    """The picture below the first example is that of the example's adapter."""
    readme = Path("README.md").read_text()
    example = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert example
    names: dict[str, Any] = {}
    exec(example[1], names)
    assert f"\n```text\n{names['adapter'].draw()}\n```\n" in readme


def test_every_document_with_python_is_checked() -> None:
    """The README is among them, and so are blocks that are run and not shown."""
    names = [path.name for path in documents()]
    assert names[0] == "README.md"
    assert "operators.md" in names
    assert module_of("a\n<!--- invisible-code-block: python\nx = 1\n-->\n") == "\n\nx = 1\n"


MARKDOWN = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]


def prose(path: Path) -> str:
    """Return a document without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """Return what can stand behind ``#`` in a link to a document, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", MARKDOWN, ids=lambda path: path.name)
def test_links_between_documents_resolve(document: Path) -> None:
    """To a file, and where a heading is named, to that one."""
    broken: list[str] = []
    for link in re.findall(r"\]\(([^()\s]+)\)", prose(document)):
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        if re.match(r"\w+:", link):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []
