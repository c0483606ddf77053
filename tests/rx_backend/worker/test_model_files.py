"""The made-up model that workers without one announce."""

from __future__ import annotations

from pathlib import Path

import pytest

from rx_backend.worker.model_files import shared_model_folder, write_model_files
from tests.rx_backend.worker._processes import START_S, serve


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_workers_that_are_alike_share_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same model has the same folder, with whole files in it; another model has another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = shared_model_folder(4096)
    (folder / "tokenizer.json").write_text("half of i")
    assert shared_model_folder(4096) == folder
    (tmp_path / "alone").mkdir()
    assert contents(folder) == contents(write_model_files(tmp_path / "alone", 4096))
    assert shared_model_folder(8192) != folder


@pytest.mark.needs("dynamo")
@pytest.mark.timeout(90)
def test_a_worker_without_a_home_has_a_folder_of_its_own(tmp_path: Path) -> None:
    """It says so, and serves."""
    with serve(tmp_path, "CountingEngine", "--grace-s", "0", HOME="/dev/null") as worker:
        worker.line("not shared with other workers", START_S)
        worker.line("serving")
