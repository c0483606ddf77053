"""
Check the types of the documents' Python blocks, with pyright and mypy, both strict.

The blocks of a document are one module, written to a temporary folder with each block at its lines
of the document, so that a message of a type checker names the line in the document. Run by
`make lint`; names the documents to check, or checks all.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools.document import ROOT

__all__ = ("CHECKERS", "check", "documents", "module_of")

CHECKERS = (
    ("pyright", "--pythonpath", sys.executable),
    ("mypy", "--config-file", str(ROOT / "pyproject.toml"), "--no-error-summary"),
)

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
    """Return what the type checkers have against the blocks of documents; nothing where they agree."""
    with tempfile.TemporaryDirectory() as folder:
        names: dict[str, str] = {}
        for path in paths:
            module = Path(folder) / f"{path.stem.lower()}_md.py"
            module.write_text(module_of(path.read_text()))
            names[str(module)] = os.path.relpath(path, ROOT)
        config = Path(folder) / "pyrightconfig.json"
        config.write_text(f'{{"typeCheckingMode": "strict", "extraPaths": ["{ROOT}"]}}')
        said = ""
        for name, *options in CHECKERS:
            where = ["--project", folder] if name == "pyright" else sorted(names)
            done = subprocess.run(
                [Path(sys.executable).with_name(name), *options, *where],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
            said += (done.stdout + done.stderr) * (done.returncode != 0)
    for module, document in names.items():
        said = said.replace(module, document)
    return said


if __name__ == "__main__":
    sys.exit(check([Path(name).resolve() for name in sys.argv[1:]] or documents()) or None)
