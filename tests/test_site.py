"""The documentation site, which `make site` builds: its links, its pages, its pictures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import operators
from tests.diagrams import read_diagrams
from tools import gallery
from tools.document import ROOT
from tools.site import lay_out


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "source"
    lay_out(folder, documents_only=True)
    return folder


def checked(pages: Path) -> subprocess.CompletedProcess[str]:
    """Check the links of *pages*, with Sphinx in a process of its own."""
    code = "import sys, pathlib, tools.site as s; sys.exit(s.check(pathlib.Path(sys.argv[1])))"
    return subprocess.run(
        [sys.executable, "-c", code, pages],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(90)
def test_a_broken_link_is_reported(tmp_path: Path) -> None:
    """A document that is missing fails the check, and so does an anchor."""
    pages = tmp_path / "source"
    pages.mkdir()
    links = "[one](gone.md), [two](index.md#gone), [three](index.md#here)"
    (pages / "index.md").write_text(f"# Start\n\n## Here\n\n{links}\n")
    done = checked(pages)
    assert done.returncode != 0
    assert done.stderr.count("WARNING") == 2, done.stderr


def test_pages_show_no_hidden_tests(pages: Path) -> None:
    """What runs with the tests and is not shown on GitHub is not on the site either."""
    texts = [path.read_text() for path in pages.rglob("*.md")]
    assert len(texts) > 15
    assert not [text for text in texts if "invisible-code-block" in text]


def test_a_notebook_is_a_page_with_its_pictures(pages: Path) -> None:
    """Its text, its code, and what the code drew."""
    page = (pages / "notebooks/composing.md").read_text()
    assert page.startswith("# Composing operators")
    assert "```python\n" in page
    assert len(list(pages.glob("notebooks/composing-*.png"))) == page.count("```{image}") > 10


def test_every_operator_is_in_the_gallery() -> None:
    """Each is exported by a lower-case name; of these only `fuse` is none."""
    written = {name for name in operators.__all__ if name.islower()}
    shown = [name for named in gallery.groups().values() for name in named]
    assert sorted(shown) == sorted(written - {"fuse"})


def test_a_picture_shows_a_real_run() -> None:
    """It shows what the operator did to the source, which no diagram says."""
    (diagram,) = read_diagrams(operators.limit_tokens.__doc__)
    drawn = gallery.picture("limit_tokens", diagram)
    assert str(drawn).splitlines()[:2] == ["source  -a-(b!)", "result  -a-(B|)"]
    light = gallery.svg(drawn)
    assert "#22262b" in light
    assert "#22262b" not in gallery.dark(light)
