"""Fetching a browser, with an apt-get and a dpkg that only seem to be some."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_cluster_tool import write
from tools import browser
from tools.browser import fetch, find
from tools.cluster import UnavailableError


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a machine that has only the programs of a folder, and has fetched nothing yet."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(browser, "FOLDER", tmp_path / "fetched")
    return programs


def test_what_the_browser_needs_is_fetched_too(programs: Path) -> None:
    """Libraries and fonts are found where they were unpacked."""
    write(
        programs / "apt-get",
        'case "$*" in',
        "*--simulate*) echo 'Inst libnss3 (2 Debian)'; echo 'Inst chromium-headless-shell (1)' ;;",
        '*) for name in "$@"; do : > "$name.deb"; done ;;',
        "esac",
    )
    write(
        programs / "dpkg",
        'case "$2" in',
        "*libnss3.deb)",
        "  /bin/mkdir -p unpacked/usr/lib/x86_64-linux-gnu unpacked/etc/fonts",
        "  : > unpacked/usr/lib/x86_64-linux-gnu/libnss3.so ;;",
        "*) /bin/mkdir -p unpacked/usr/bin unpacked/usr/lib/chromium ;;",
        "esac",
    )
    with pytest.raises(UnavailableError, match="make test-browser"):
        find()
    fetch()
    unpacked = browser.FOLDER / "unpacked"
    found = find()
    assert found.program == unpacked / "usr/lib/chromium/chromium-headless-shell"
    assert found.driver == unpacked / "usr/bin/chromedriver"
    assert found.environment["LD_LIBRARY_PATH"] == str(unpacked / "usr/lib/x86_64-linux-gnu")
    fonts = Path(found.environment["FONTCONFIG_FILE"]).read_text(encoding="utf-8")
    assert f"<dir>{unpacked}/usr/share/fonts</dir>" in fonts
    write(programs / "apt-get", "exit 1")
    fetch()


def test_an_installed_browser_is_taken(programs: Path) -> None:
    """With its driver, in the environment as it is."""
    write(programs / "chromium")
    write(programs / "chromedriver")
    fetch()
    assert (find().program, find().driver) == (programs / "chromium", programs / "chromedriver")
    assert "FONTCONFIG_FILE" not in find().environment


def test_what_apt_complains_of_is_told(programs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line, with which the tests are left out."""
    write(programs / "apt-get", "echo E: Unable to locate package >&2", "exit 100")
    write(programs / "dpkg")
    assert browser.main() == 1
    assert capsys.readouterr().err == ("no tests in a browser: apt-get: Unable to locate package\n")
