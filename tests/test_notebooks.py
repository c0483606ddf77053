"""The notebooks run from top to bottom, and show what is kept in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tools import notebooks
from tools.notebooks import LIVE, NEEDS, outputs, read
from tools.notebooks import run as run_notebook

PATHS = notebooks.paths()
KEPT = [path for path in PATHS if path.stem not in LIVE]

# What a reader has to load.
MOST_BYTES = 600_000

# A file of this machine, or where something lay in memory.
OF_THE_MACHINE = re.compile(r"/(home|root|tmp|usr|work|Users)/|site-packages|\b0x[0-9a-f]{6,}")


def name(path: Path) -> str:
    return path.stem


def runnable(path: Path) -> Any:
    return pytest.param(path, marks=pytest.mark.needs(*NEEDS.get(path.stem, ())), id=path.stem)


def shown(notebook: Any) -> list[Any]:
    """Return what its cells show: texts, and that there is a picture."""
    return [
        (cell.id, output.output_type, output.get("text"), said(output.get("data", {})))
        for cell in notebook.cells
        for output in cell.get("outputs", ())
    ]


def said(data: dict[str, Any]) -> dict[str, Any]:
    return {kind: kind.startswith("image/") or value for kind, value in data.items()}


def test_there_are_notebooks() -> None:
    """The folder is where these tests look for it, with notebooks of both kinds."""
    assert {path.stem for path in PATHS} > LIVE
    assert KEPT


@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", [runnable(path) for path in PATHS])
def test_notebook_runs(path: Path) -> None:
    """It ends without an error, and shows a picture; where outputs are kept, these very ones."""
    notebook = run_notebook(path)
    assert any("image/png" in output.get("data", ()) for output in outputs(notebook))
    if path in KEPT:
        hint = f"python -m tools.notebooks {path.stem}"
        assert shown(notebook) == shown(read(path)), f"stale outputs: {hint}"


@pytest.mark.parametrize("path", sorted(set(PATHS) - set(KEPT)), ids=name)
def test_live_notebook_is_kept_without_outputs(path: Path) -> None:
    """The file holds no outputs and no execution counts, so that a change shows what was changed."""
    notebook = read(path)
    assert outputs(notebook) == []
    assert [cell.id for cell in notebook.cells if cell.get("execution_count") is not None] == []


@pytest.mark.parametrize("path", KEPT, ids=name)
def test_notebook_is_kept_with_outputs(path: Path) -> None:
    """It was run from top to bottom, and holds what it shows but nothing of who ran it, or when."""
    notebook = read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert any("image/png" in output.get("data", ()) for output in outputs(notebook))
    assert notebook.metadata["language_info"] == {"name": "python"}
    assert [cell.id for cell in notebook.cells if cell.metadata] == []
    texts = str(shown(notebook))
    assert OF_THE_MACHINE.search(texts) is None
    assert "stderr" not in [output.get("name") for output in outputs(notebook)]
    assert path.stat().st_size < MOST_BYTES
