"""
Build the documentation site: the Markdown that is there, the gallery, and the API, with Sphinx.

The pages are laid out in build/docs/source as in the repository, so that their links hold, and the
site is built from there into build/docs/html. A warning, such as a link that leads nowhere, fails.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from base64 import b64decode
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from sphinx.cmd.build import main as sphinx_build

from tools import gallery, notebooks, reference
from tools.document import ROOT

__all__ = ("SECTIONS", "build", "check", "lay_out")

BUILD = ROOT / "build/docs"

SECTIONS = {
    "Guide": ("notebooks/first_request", "docs/recipes"),
    "Operators": ("docs/operators", "gallery/index", "notebooks/composing"),
    "Engines": ("docs/engines", "docs/engine-*", "notebooks/real_model"),
    "Serving": ("docs/workers", "docs/web*", "docs/resum*", "docs/jetstream", "docs/exposure"),
    "Observability": ("docs/observability", "notebooks/*"),
    "Reference": ("api/index", "docs/*", "CHANGELOG", "CONTRIBUTING", "SECURITY"),
}
"""The pages of the sidebar, by patterns; a page belongs to the first that it matches."""

_API = """\
# API

Every public name, on the page of the shortest module that it can be imported from. The operators
have pages of their own in the [gallery](../gallery/index.md).

"""
_LINK = re.compile(r"(?<=\]\()([\w./-]+)(?=[)#])")
_HIDDEN = re.compile(r"^<!---.*?-->\n", re.DOTALL | re.MULTILINE)


def lay_out(source: Path, *, documents_only: bool = False) -> None:
    """
    Write the pages of the site.

    Args:
        source: The folder to write to; it is made anew.
        documents_only: Leave out the gallery and the API, which take their time.
    """
    shutil.rmtree(source, ignore_errors=True)
    documents = [path for path in ROOT.glob("docs/*.md") if path.name != "README.md"]
    beside = [path for path in ROOT.glob("*.md") if path.name != "README.md"]
    for path in (*beside, *documents):
        _write_page(source, path, path.read_text())
    for path in notebooks.paths():
        _write_page(source, path.with_suffix(".md"), _notebook(path, source))
    pages = [str(path.relative_to(source).with_suffix("")) for path in source.rglob("*.md")]
    if not documents_only:
        gallery.write(source / "gallery")
        _write_api(source / "api")
        pages += ["gallery/index", "api/index"]
    readme = ROOT / "README.md"
    _write_page(source, readme.with_name("index.md"), readme.read_text() + _trees(pages))


def build(source: Path, out: Path, *options: str) -> int:
    """Build the pages in *source* with Sphinx, with warnings as errors; return its exit code."""
    strict = ("--fail-on-warning", "--keep-going", "--quiet", "--jobs=2")
    places = ("-c", str(ROOT / "docs"), "-d", str(out.parent / "doctrees"), str(source), str(out))
    return sphinx_build([*strict, *options, *places])


def check(source: Path) -> int:
    """Read the pages in *source* and resolve their links, write no HTML; return the exit code."""
    return build(source, source.parent / "check", "-b", "dummy")


def _write_page(source: Path, path: Path, text: str) -> None:
    """
    Write a document as a page of the site.

    Hidden tests are left out, links to the README and to notebooks lead to their pages, and other
    files that it links to are put where the links look for them: Sphinx offers them as downloads.
    """

    def led_on(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(path.parent / link[0]))
        if target == ROOT / "README.md":
            return link[0].replace("README", "index")
        if target.suffix == ".ipynb":
            return link[0].replace(".ipynb", ".md")
        if target.suffix != ".md" and target.is_file():
            copy = source / target.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(target, copy)
        return link[0]

    page = source / path.relative_to(ROOT)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(_LINK.sub(led_on, _HIDDEN.sub("", text)))


def _trees(pages: list[str]) -> str:
    """Return the sidebar's tables of contents."""
    left, trees = sorted(pages), ""
    for section, patterns in SECTIONS.items():
        found = {page: None for pattern in patterns for page in left if fnmatch(page, pattern)}
        left = [page for page in left if page not in found]
        trees += _tree(list(found), f":caption: {section}")
    return trees


def _tree(pages: list[str], *options: str) -> str:
    """Return a table of contents for the sidebar."""
    return "\n".join(["\n```{toctree}", ":hidden:", *options, "", *pages, "```\n"])


def _write_api(folder: Path) -> None:
    """Write a page for each public module, with what `tools.reference` lists under it."""
    folder.mkdir()
    listed = [(module.__name__, module, values) for module, values in reference.listed()]
    taken = {f"{name}.{value}" for name, _, values in listed for value in values}
    drawn = {f"operators.{name}" for name in gallery.names()}
    index = _API
    for name, module, values in listed:
        kinds = {f"{name}.{value}": reference.describe(values[value])[0] for value in values}
        links = ", ".join(f":py:obj:`~{value}`" for value in kinds)
        page = [f"# `{name}`\n\n```{{eval-rst}}", f".. automodule:: {name}"]
        page += ["   :no-index:"] * (name in taken)
        page += ["", links, ""]
        page += [_documented(value, kind) for value, kind in kinds.items() if value not in drawn]
        (folder / f"{name}.md").write_text("\n".join([*page, "```\n"]))
        index += f"- [`{name}`]({name}.md): {reference.summary(module)}\n"
    (folder / "index.md").write_text(index + _tree([name for name, *_ in listed]))


def _documented(name: str, kind: str) -> str:
    """Return the directive that documents a name; *kind* is that of the reference."""
    if kind in {"class", "error"}:
        directive = "class" if kind == "class" else "exception"
        return f".. auto{directive}:: {name}\n   :members:\n"
    return f".. auto{'function' if kind == 'function' else 'data'}:: {name}\n"


def _notebook(path: Path, source: Path) -> str:
    """Return a notebook as Markdown, and write its pictures beside it."""
    parts: list[str] = []
    for cell in notebooks.read(path).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            parts.append(_output(output, source / f"notebooks/{path.stem}-{len(parts)}.png"))
    return "\n\n".join(parts) + "\n"


def _output(output: Any, image: Path) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        image.parent.mkdir(exist_ok=True)
        image.write_bytes(b64decode(data["image/png"]))
        alt = " ".join("".join(data["text/plain"]).split())
        return f"```{{image}} {image.name}\n:class: drawn\n:alt: {json.dumps(alt)}\n```"
    if "text/markdown" in data:
        return "".join(data["text/markdown"])
    return f"```text\n{''.join(output.get('text') or data['text/plain']).rstrip()}\n```"


def main() -> int:
    """Build the site, or only check it."""
    parser = argparse.ArgumentParser(description="Build the documentation site.")
    checks = parser.add_mutually_exclusive_group()
    checks.add_argument("--check", action="store_true", help="find what is wrong, write no HTML")
    checks.add_argument("--external-links", action="store_true", help="ask for each external link")
    chosen = parser.parse_args()
    lay_out(BUILD / "source", documents_only=chosen.external_links)
    if chosen.check:
        return check(BUILD / "source")
    if chosen.external_links:
        return build(BUILD / "source", BUILD / "external-links", "-b", "linkcheck")
    failed = build(BUILD / "source", BUILD / "html")
    print(BUILD.relative_to(ROOT) / "html/index.html")
    return failed


if __name__ == "__main__":
    sys.exit(main())
