"""A missing extra is named; a package that is there and broken fails with its own error."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rx_backend.extras import import_extra


def load(module: str) -> object:
    return import_extra(module, "thing", package="a-thing", needed_by="it", hint="; or not")


@pytest.fixture
def a_thing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the folder of a package `a_thing`, which can be imported."""
    folder = tmp_path / "a_thing"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name in ("a_thing", "a_thing.part"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder


@pytest.mark.parametrize("module", ["absent_thing", "absent_thing.part"])
def test_a_missing_package_is_reported_in_one_line(module: str) -> None:
    """With the command that installs it."""
    with pytest.raises(ImportError) as caught:
        load(module)
    told = "it needs the package a-thing: pip install 'rx-backend[thing]'; or not"
    assert str(caught.value) == told


def test_a_module_missing_from_another_version(a_thing: Path) -> None:
    """The extra's version has it."""
    with pytest.raises(ImportError, match=r"'rx-backend\[thing\]'"):
        load("a_thing.part")


@pytest.mark.parametrize(
    ("source", "told"),
    [("import absent", "No module named 'absent'"), ("raise ImportError('no libx')", "no libx")],
)
def test_a_broken_package_raises_its_own_error(a_thing: Path, source: str, told: str) -> None:
    """Installing it again would not help."""
    (a_thing / "part.py").write_text(source)
    with pytest.raises(ImportError, match=rf"^{told}$"):
        load("a_thing.part")


def test_an_installed_package_is_imported(a_thing: Path) -> None:
    """Its module is returned, not the package around it."""
    (a_thing / "part.py").write_text("answer = 42")
    assert vars(load("a_thing.part"))["answer"] == 42
