"""Imports point downwards; pyproject.toml holds the layers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_imports_point_downwards() -> None:
    """No module imports one of a higher layer, and operators know nothing of rx_backend."""
    command = "import sys; from importlinter.cli import lint_imports; "
    command += "sys.exit(lint_imports(no_cache=True, no_logo=True))"
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
