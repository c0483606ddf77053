"""
Run notebooks from top to bottom, and keep what they show.

Most notebooks are in virtual time and give the same each time: their outputs are kept in the file,
so that they can be read without running them. Those that are about real time are kept without.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import nbformat
from nbclient import NotebookClient

from tools.document import ROOT

__all__ = ("FOLDER", "LIVE", "outputs", "paths", "read", "run")

FOLDER = ROOT / "notebooks"

LIVE = frozenset(("first_request", "telemetry"))
"""Notebooks about real time; no two runs of them are the same."""

# A cell that hangs is told by name, before the whole run is cut off.
_CELL_S = 15

_OF_A_USER = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
_NOT_WANTED = ("MPLBACKEND", "OTEL_EXPORT_ENABLED", "OTEL_SDK_DISABLED")


def paths() -> list[Path]:
    """The notebooks, in the order of their names."""
    return sorted(FOLDER.glob("*.ipynb"))


def read(path: Path) -> Any:
    """Read a notebook."""
    return cast("Any", nbformat).read(path, as_version=4)


def outputs(notebook: Any) -> list[Any]:
    """What its cells show, in order."""
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def run(path: Path) -> Any:
    """
    Run a notebook, and return it with what it shows and nothing of the run: no times, no versions.

    Raises:
        CellExecutionError: A cell failed; shows it.
    """
    notebook = read(path)
    client = NotebookClient(
        notebook,
        timeout=_CELL_S,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(FOLDER)}},
    )
    with _a_fresh_user():
        asyncio.run(client.async_execute())
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.clear()
    return notebook


@contextmanager
def _a_fresh_user() -> Generator[None]:
    """What the user has set up makes no difference, and is left alone."""
    before = {name: os.environ.pop(name, None) for name in (*_OF_A_USER, *_NOT_WANTED)}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name in _OF_A_USER:
                os.environ[name] = str(Path(folder, name.lower()))
            yield
        finally:
            for name in _OF_A_USER:
                del os.environ[name]
            os.environ.update({name: value for name, value in before.items() if value is not None})


def main() -> None:
    """Run the notebooks that are named, or all that are kept with outputs, and keep those."""
    names = sys.argv[1:] or [path.stem for path in paths() if path.stem not in LIVE]
    for name in names:
        path = FOLDER / f"{name}.ipynb"
        cast("Any", nbformat).write(run(path), path)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1024} kB")


if __name__ == "__main__":
    main()
