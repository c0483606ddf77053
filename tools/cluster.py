"""
Find etcd, NATS and Prometheus for the tests on a cluster, or fetch Debian's packages of them.

The packages are downloaded with apt-get and unpacked into ``.cluster``. Nothing is installed, so
root is not needed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.document import ROOT

__all__ = ("FOLDER", "PACKAGES", "UnavailableError", "fetch", "find", "run", "unpack")

FOLDER = ROOT / ".cluster"

PACKAGES = {"etcd": "etcd-server", "nats-server": "nats-server", "prometheus": "prometheus"}
"""The package of each server."""

_COMMAND_S = 120.0


class UnavailableError(Exception):
    """A server is not available; the message gives the reason in one line."""


def find(server: str) -> Path:
    """
    Return the path of a server's program, from the PATH or from those fetched.

    Raises:
        UnavailableError: It is in neither place.
    """
    # Debian's nats-server is in a folder that is on root's PATH only.
    places = [os.environ.get("PATH", os.defpath), "/usr/sbin", str(FOLDER)]
    found = shutil.which(server, path=os.pathsep.join(places))
    if found is None:
        raise UnavailableError(f"{server} not found: make test-cluster fetches it")
    return Path(found)


def fetch() -> None:
    """
    Fetch the packages of the servers that are missing.

    Raises:
        UnavailableError: They cannot be fetched, or there is no runtime to test on them.
    """
    if find_spec("dynamo") is None:
        raise UnavailableError("no ai-dynamo-runtime here, which has no wheel for this machine")
    missing = [server for server in PACKAGES if not _is_here(server)]
    if not missing:
        return
    FOLDER.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=FOLDER) as name:
        unpacked = unpack([PACKAGES[server] for server in missing], Path(name))
        for server in missing:
            (program,) = unpacked.glob(f"usr/*bin/{server}")
            program.replace(FOLDER / server)


def unpack(packages: list[str], folder: Path, *, needed_by: str | None = None) -> Path:
    """
    Fetch Debian's packages and unpack them in an empty folder; return where.

    Args:
        packages: Their names.
        folder: The folder.
        needed_by: A package that is fetched too, with all that it needs and that is not installed.

    Raises:
        UnavailableError: They cannot be fetched.
    """
    for command in ("apt-get", "dpkg"):
        if shutil.which(command) is None:
            wanted = [*packages, *filter(None, [needed_by])]
            raise UnavailableError(f"no {' and no '.join(wanted)} here, and no {command} either")
    _download(packages, needed_by, folder)
    for package in folder.glob("*.deb"):
        _run(["dpkg", "-x", str(package), "unpacked"], folder)
    return folder / "unpacked"


def _download(packages: list[str], needed_by: str | None, folder: Path) -> None:
    def download(*options: str) -> None:
        names = (
            packages if needed_by is None else [*packages, *_missing(needed_by, options, folder)]
        )
        _run(["apt-get", *options, "download", *names], folder)

    quick = ["-qq", "-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=10"]
    try:
        download(*quick)
    except UnavailableError:
        # The package lists may be outdated or missing, as in most images: use lists of our own.
        own: list[str] = []
        for kind, path in (("State::Lists", "lists/partial"), ("Cache", "cache/archives/partial")):
            (folder / path).mkdir(parents=True)
            own += ["-o", f"Dir::{kind}={folder / path.split('/', 1)[0]}"]
        _run(["apt-get", *quick, *own, "update", "-o", "APT::Update::Error-Mode=any"], folder)
        download(*quick, *own)


def _missing(package: str, options: tuple[str, ...], folder: Path) -> list[str]:
    """Return a package, and those that it needs and that are not installed."""
    simulated = ["--simulate", "--no-install-recommends", "install"]
    told = _run(["apt-get", *options, *simulated, package], folder)
    return [line.split()[1] for line in told.splitlines() if line.startswith("Inst ")]


def _run(command: list[str], folder: Path) -> str:
    return run(command, folder, name=command[0], mark="E: ", limit_s=_COMMAND_S)


def run(command: list[str], folder: Path, *, name: str, mark: str, limit_s: float) -> str:
    """
    Run a command in a folder, and return what it prints.

    Args:
        command: The command.
        folder: Where it runs.
        name: What it is called in an error.
        mark: What its own error lines begin with; the first of them is told.
        limit_s: How long it may take, in seconds.

    Raises:
        UnavailableError: It failed, or took too long.
    """
    try:
        done = subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True, timeout=limit_s
        )
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"{name} took more than {limit_s:.0f} s") from error
    except subprocess.CalledProcessError as error:
        lines = str(error.stderr).strip().splitlines() or [f"exit code {error.returncode}"]
        told = next((line for line in lines if line.startswith(mark)), lines[-1])
        raise UnavailableError(f"{name}: {told.removeprefix(mark)}") from error
    return done.stdout


def _is_here(server: str) -> bool:
    try:
        find(server)
    except UnavailableError:
        return False
    return True


def main() -> int:
    """Make the servers available; return 1, with a line on stderr, if that fails."""
    try:
        fetch()
    except UnavailableError as error:
        sys.stderr.write(f"no tests on etcd, NATS and Prometheus: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
