"""The notebooks run from top to bottom."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

# A cell that hangs is told by name, before the whole test is cut off.
CELL_S = 15


def read(path: Path) -> Any:
    return cast("Any", nbformat).read(path, as_version=4)


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def test_there_are_notebooks() -> None:
    """The folder is where these tests look for it."""
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends without an error, and shows a plot."""
    # What the user has set up makes no difference, and is left alone.
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    for name in ("MPLBACKEND", "OTEL_EXPORT_ENABLED", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    notebook = read(path)
    client = NotebookClient(
        notebook,
        timeout=CELL_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(FOLDER)}},
    )
    asyncio.run(client.async_execute())
    assert any("image/png" in output.get("data", ()) for output in outputs(notebook))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_kept_without_outputs(path: Path) -> None:
    """The file holds no outputs and no execution counts, so that a change shows what was changed."""
    notebook = read(path)
    assert outputs(notebook) == []
    assert [cell.id for cell in notebook.cells if cell.get("execution_count") is not None] == []
