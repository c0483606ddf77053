"""Another `operators` that is found first is named, where the library is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("kind", ["module", "package"])
def test_a_shadowing_package_is_named(tmp_path: Path, kind: str) -> None:
    """The error says which file it is and what to do, whatever is imported of the library."""
    if kind == "module":
        (tmp_path / "operators.py").write_text("VALUE = 1\n")
    else:
        (tmp_path / "operators").mkdir()
        (tmp_path / "operators" / "__init__.py").write_text("VALUE = 1\n")
    program = f"import sys; sys.path[:0] = {[str(tmp_path), str(ROOT)]!r}\n"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program + "import rx_backend.testing"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: rx_backend needs its own package `operators`")
    assert str(tmp_path / "operators") in last
    assert "rename" in last
