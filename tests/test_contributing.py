"""What CONTRIBUTING.md tells a newcomer to write is right, word for word."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.document import ROOT

MODULE = "operators/_skip_empty.py"
TEST = "tests/operators/test_skip_empty.py"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Give a copy of the sources with the two files that the document shows."""
    for name in ("operators", "rx_backend", "tests/operators"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("conftest.py", "examples.py", "leaks.py", "spans.py", "__init__.py"):
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for name, block in zip((MODULE, TEST), blocks, strict=True):
        (tmp_path / name).write_text(block, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        ["pytest", "-q", MODULE, TEST],
        ["ruff", "check", MODULE, TEST],
        ["ruff", "format", "--check", MODULE, TEST],
    ],
    ids=["tests", "style", "format"],
)
def test_the_first_operator_passes_its_tests(project: Path, command: list[str]) -> None:
    """Its test, its doctest, and what lint says of them."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if command[0] == "pytest":
        assert "4 passed" in done.stdout
