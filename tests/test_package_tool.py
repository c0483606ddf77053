"""What the check of the packages finds before users do."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from zipfile import ZipFile

import pytest

from tools.document import ROOT
from tools.package import (
    EXTRAS,
    HEAVY,
    PackageError,
    build,
    check_files,
    check_imports,
    check_refusal,
    first_example,
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the project's own wheel."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def changed(wheel: Path, folder: Path, without: str = "", added: str | None = None) -> Path:
    """Return a copy of a wheel without one file, and with another."""
    copy = folder / wheel.name
    with ZipFile(wheel) as old, ZipFile(copy, "w") as new:
        files = {name: old.read(name) for name in old.namelist() if name != without}
        (record,) = (name for name in files if name.endswith("/RECORD"))
        lines = files[record].decode().splitlines(keepends=True)
        if added is not None:
            files[added] = b""
            lines.append(f"{added},sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,0\n")
        files[record] = "".join(
            line for line in lines if not line.startswith(f"{without},")
        ).encode()
        for name, content in files.items():
            new.writestr(name, content)
    return copy


def test_the_wheel_is_valid(wheel: Path) -> None:
    """It has the types' markers and the licence, and no tests."""
    check_files(wheel)
    names = ZipFile(wheel).namelist()
    assert {"operators/py.typed", "rx_backend/py.typed"} <= set(names)
    assert sum(name.endswith(".dist-info/licenses/LICENSE") for name in names) == 1
    assert not [name for name in names if "test_" in name or "conftest" in name]


def test_a_lost_file_is_found(wheel: Path, tmp_path: Path) -> None:
    """Also one that is no module."""
    with pytest.raises(PackageError, match=r"operators/py\.typed"):
        check_files(changed(wheel, tmp_path, without="operators/py.typed"))


def test_an_extra_file_is_found(wheel: Path, tmp_path: Path) -> None:
    """As tests, which nobody wants to have installed."""
    with pytest.raises(PackageError, match="tests"):
        check_files(changed(wheel, tmp_path, added="tests/test_x.py"))


def test_invalid_metadata_is_found(wheel: Path, tmp_path: Path) -> None:
    """As a description that can't be shown."""
    metadata = next(name for name in ZipFile(wheel).namelist() if name.endswith("/METADATA"))
    copy = changed(wheel, tmp_path, without=metadata)
    with ZipFile(wheel) as old, ZipFile(copy, "a") as new:
        head = old.read(metadata).decode().split("\n\n")[0]
        new.writestr(metadata, head.replace("text/markdown", "text/x-rst") + "\n\n.. nope::\n")
    with pytest.raises(PackageError, match="long_description"):
        check_files(copy)


PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "thing"
version = "{version}"
[tool.hatch.build.targets.sdist]
exclude = ["*.json"]
"""


def test_an_sdist_that_lacks_files_is_found(tmp_path: Path) -> None:
    """The wheel from it differs from that of the sources."""
    folder = tmp_path / "thing"
    folder.mkdir()
    for name in ("__init__.py", "data.json"):
        (folder / name).touch()
    (tmp_path / "pyproject.toml").write_text(PROJECT.format(version="1"))
    with pytest.raises(PackageError, match="the sdist makes another wheel"):
        build(tmp_path, tmp_path / "dist")


def test_a_failing_build_shows_its_output(tmp_path: Path) -> None:
    """The reason is in there."""
    (tmp_path / "pyproject.toml").write_text(PROJECT.format(version="one"))
    with pytest.raises(PackageError, match="Invalid version `one`"):
        build(tmp_path, tmp_path / "dist")


NATIVE = "rx_backend.engines.llama_cpp.native"
LACKS = "No module named 'numpy'"


@pytest.mark.parametrize(
    ("failed", "installed"),
    [({NATIVE: LACKS}, ["engine-llama-cpp"]), ({"rx_backend.adapter": LACKS}, [])],
    ids=["an extra is not complete", "a requirement is not declared"],
)
def test_a_module_that_can_not_be_imported_is_found(
    failed: Mapping[str, str], installed: list[str]
) -> None:
    """Unless its extra is not installed."""
    check_imports({NATIVE: LACKS})
    with pytest.raises(PackageError, match=f"{next(iter(failed))} can't be .*: {LACKS}"):
        check_imports(failed, installed)


@pytest.mark.parametrize(
    ("code", "stderr"),
    [
        (0, ""),
        (1, "ModuleNotFoundError: No module named 'rich'"),
        (1, "ImportError: pip install 'rx-backend[plot]'"),
    ],
)
def test_an_untested_extra_is_found(code: int, stderr: str) -> None:
    """By another's name neither."""
    check_refusal("cli", subprocess.CompletedProcess([], 1, "", "E: pip install 'rx-backend[cli]'"))
    with pytest.raises(PackageError, match="the extra cli is not asked for"):
        check_refusal("cli", subprocess.CompletedProcess([], code, "", stderr))


def test_the_example_is_the_first_block() -> None:
    """Of Python."""
    assert first_example("```sh\nls\n```\n```python\nx = 1\n```\n```python\ny\n```\n") == "x = 1\n"
    with pytest.raises(PackageError, match="no example"):
        first_example("# Nothing\n")


def test_every_public_extra_is_tested() -> None:
    """Those for the project's own work are in its environment."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    own = {"bench", "dev", "docs", "engines", "lint", "next", "package", "test"}
    assert {*EXTRAS, *HEAVY} == project["optional-dependencies"].keys() - own
