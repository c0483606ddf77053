"""
Check the types of the documents' Python blocks, with pyright and mypy, both strict.

The blocks of a document form one module, written to a temporary folder with each block at its lines
of the document, so messages of a type checker name the document's lines. Run by `make lint`; takes
the documents to check, by default all.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools.document import ROOT

__all__ = ("check", "documents", "module_of")

_BLOCK = re.compile(
    r"^(?:```|<!--- invisible-code-block: )python\n(?P<code>.*?)^(?:```|-->)$",
    re.MULTILINE | re.DOTALL,
)


def documents() -> list[Path]:
    """Return the documents that have Python blocks."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [path for path in found if _BLOCK.search(path.read_text())]


def module_of(text: str) -> str:
    r"""
    Return a document's Python blocks, each at its own lines.

    >>> module_of("# Title\n\n```python\nx = 1\n```\ntext\n```sh\nls\n```\n")
    '\n\n\nx = 1\n'
    """
    lines: list[str] = []
    for block in _BLOCK.finditer(text):
        start = text.count("\n", 0, block.start("code"))
        lines += [""] * (start - len(lines))
        lines += block["code"].splitlines()
    return "\n".join(lines) + "\n"


def check(paths: Sequence[Path]) -> str:
    """Return the type checkers' messages about the blocks of documents, empty if there are none."""
    modules = {f"{path.stem.lower()}_md.py": path for path in paths}
    said = ""
    with tempfile.TemporaryDirectory() as folder:
        for name, path in modules.items():
            Path(folder, name).write_text(module_of(path.read_text()))
        config = {"typeCheckingMode": "strict", "extraPaths": [str(ROOT)]}
        Path(folder, "pyrightconfig.json").write_text(json.dumps(config))
        mypy = ["--config-file", ROOT / "pyproject.toml", "--cache-dir", ROOT / ".mypy_cache"]
        said += _run(folder, "pyright", "--pythonpath", sys.executable)
        said += _run(folder, "mypy", "--no-error-summary", *mypy, *modules)
        said = said.replace(f"{folder}/", "")
    for name, path in modules.items():
        said = said.replace(name, os.path.relpath(path, ROOT))
    return said


def _run(folder: str, checker: str, *options: str | Path) -> str:
    """Return the output of a type checker in *folder* if it fails, else nothing."""
    done = subprocess.run(
        [Path(sys.executable).with_name(checker), *options],
        cwd=folder,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr if done.returncode else ""


if __name__ == "__main__":
    sys.exit(check([Path(name).resolve() for name in sys.argv[1:]] or documents()) or None)
