"""Fetching servers and a browser, with an apt-get and a dpkg that only seem to be some."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import browser, cluster
from tools.cluster import UnavailableError

SERVERS = ("etcd", "prometheus", "nats-server")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a machine that has only the programs of a folder, and has fetched nothing yet."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    for tool in (browser, cluster):
        monkeypatch.setattr(tool, "FOLDER", tmp_path / tool.__name__)
    return programs


def write(program: Path, *lines: str) -> None:
    program.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    program.chmod(0o755)


@pytest.mark.needs("dynamo")
def test_a_server_is_unpacked_and_found(programs: Path) -> None:
    """Without being installed; what is there already is not fetched again."""
    with pytest.raises(UnavailableError, match=r"^no etcd-server .*here, and no apt-get either$"):
        cluster.fetch()
    with pytest.raises(UnavailableError, match="make test-cluster"):
        cluster.find("etcd")
    write(programs / "apt-get", ": > any.deb")
    unpacked = [f": > unpacked/usr/bin/{name}" for name in SERVERS]
    write(
        programs / "dpkg",
        "/bin/mkdir -p unpacked/usr/bin",
        *unpacked,
        "/bin/chmod +x unpacked/usr/bin/*",
    )
    cluster.fetch()
    assert cluster.find("etcd") == cluster.FOLDER / "etcd"
    assert {path.name for path in cluster.FOLDER.iterdir()} <= set(cluster.PACKAGES)
    write(programs / "apt-get", "exit 1")
    cluster.fetch()


def test_the_browsers_libraries_are_fetched_too(programs: Path) -> None:
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
        browser.find()
    browser.fetch()
    unpacked = browser.FOLDER / "unpacked"
    found = browser.find()
    assert found.program == unpacked / "usr/lib/chromium/chromium-headless-shell"
    assert found.driver == unpacked / "usr/bin/chromedriver"
    assert found.environment["LD_LIBRARY_PATH"] == str(unpacked / "usr/lib/x86_64-linux-gnu")
    fonts = Path(found.environment["FONTCONFIG_FILE"]).read_text(encoding="utf-8")
    assert f"<dir>{unpacked}/usr/share/fonts</dir>" in fonts
    write(programs / "apt-get", "exit 1")
    browser.fetch()


def test_an_installed_browser_is_used(programs: Path) -> None:
    """With its driver, in the environment as it is."""
    write(programs / "chromium")
    write(programs / "chromedriver")
    browser.fetch()
    found = browser.find()
    assert (found.program, found.driver) == (programs / "chromium", programs / "chromedriver")
    assert "FONTCONFIG_FILE" not in found.environment


@pytest.mark.needs("dynamo")
def test_errors_of_apt_are_shown(programs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line, with which the tests are left out; nothing stays behind."""
    write(
        programs / "apt-get",
        "echo W: old >&2",
        "echo E: no network >&2",
        "echo E: sorry >&2",
        "exit 9",
    )
    write(programs / "dpkg")
    with pytest.raises(UnavailableError, match=r"^apt-get: no network$"):
        cluster.fetch()
    assert list(cluster.FOLDER.iterdir()) == []
    assert browser.main() == 1
    assert capsys.readouterr().err == "no tests in a browser: apt-get: no network\n"
