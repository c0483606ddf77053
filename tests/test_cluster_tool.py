"""Fetching servers, with an apt-get and a dpkg that only seem to be some."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import cluster
from tools.cluster import UnavailableError, fetch, find

pytestmark = pytest.mark.needs("dynamo")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a machine that has only the programs of a folder, and has fetched nothing yet."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(cluster, "FOLDER", tmp_path / "fetched")
    return programs


def write(program: Path, *lines: str) -> None:
    program.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    program.chmod(0o755)


def test_a_package_is_unpacked_and_found(programs: Path) -> None:
    """Without being installed; what is there already is not fetched again."""
    write(programs / "apt-get", ": > any.deb")
    write(
        programs / "dpkg",
        "/bin/mkdir -p unpacked/usr/bin unpacked/usr/sbin",
        ": > unpacked/usr/bin/etcd",
        ": > unpacked/usr/bin/prometheus",
        ": > unpacked/usr/sbin/nats-server",
        "/bin/chmod +x unpacked/usr/bin/* unpacked/usr/sbin/nats-server",
    )
    fetch()
    assert find("etcd") == cluster.FOLDER / "etcd"
    assert {path.name for path in cluster.FOLDER.iterdir()} <= set(cluster.PACKAGES)
    write(programs / "apt-get", "exit 1")
    fetch()


def test_what_apt_complains_of_is_told(programs: Path) -> None:
    """In one line, and nothing stays behind."""
    write(
        programs / "apt-get",
        "echo W: old >&2",
        "echo E: no network >&2",
        "echo E: sorry >&2",
        "exit 9",
    )
    write(programs / "dpkg")
    with pytest.raises(UnavailableError, match=r"^apt-get: no network$"):
        fetch()
    assert list(cluster.FOLDER.iterdir()) == []


def test_a_machine_without_apt_is_told_of(programs: Path) -> None:
    """As one that is no Debian."""
    with pytest.raises(UnavailableError, match=r"^no etcd-server .*here, and no apt-get either$"):
        fetch()
    with pytest.raises(UnavailableError, match="make test-cluster"):
        find("etcd")
