"""
Run the library's tests on the other Pythons of this machine, and the matrix on other event loops.

CPython 3.12 and 3.13 are searched on the PATH and among pyenv's versions. Each has a virtual
environment, ``.venv-312`` and ``.venv-313``, in which the tests of the operators, the adapter, its
outlets and telemetry, and the matrix run: on 3.12 with the lowest versions of dependencies that
``pyproject.toml`` accepts (``constraints-lowest.txt``), on 3.13 with those of ``constraints.txt``.
Then, also on the Python of ``.venv``, the matrix runs on uvloop, with eager tasks, and in asyncio's
debug mode with warnings as errors. A missing Python is reported in one line. Arguments are passed
to pytest.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tools.document import ROOT

__all__ = ("PINS", "environment", "find", "main")

PINS = {"3.12": "constraints-lowest.txt", "3.13": "constraints.txt"}
EXTRAS = "cli,dynamo,jetstream,otlp,plot,prometheus,slo,test,web"
REQUESTS = 2000
UV = Path(sys.executable).with_name("uv")

_FOLDERS = tuple(f"tests/rx_backend/{name}" for name in ("dynamo", "resumable", "telemetry", "web"))
_TELL = "import sys; print(sys.implementation.name, '%d.%d.%d' % sys.version_info[:3])"
_MATRIX = ("-m", "tests.matrix", "--requests", str(REQUESTS))


@dataclass(frozen=True)
class Python:
    """A Python of this machine: its program and its full version."""

    program: Path
    version: str


def find(version: str) -> Python | None:
    """Return CPython *version*, such as "3.12", the newest of pyenv's; None if there is none."""
    for program in _candidates(version):
        told = _told_by(program)
        if told is not None and told.startswith(f"{version}."):
            return Python(program, told)
    return None


def _candidates(version: str) -> Iterator[Path]:
    name = f"python{version}"
    found = shutil.which(name)
    if found is not None:
        yield Path(found)
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from sorted(root.glob(f"versions/*/bin/{name}"), key=_newest, reverse=True)


def _newest(program: Path) -> tuple[int, ...]:
    parts = program.parents[1].name.split(".")
    return tuple(int(part) if part.isdigit() else -1 for part in parts)


def _told_by(program: Path) -> str | None:
    """Return the version that a program reports; None if it fails, as some pyenv shims do."""
    done = subprocess.run(
        [program, "-c", _TELL], cwd=ROOT, capture_output=True, text=True, check=False
    )
    name, _, version = done.stdout.strip().partition(" ")
    return version if done.returncode == 0 and name == "cpython" else None


def environment(python: Python) -> Path:
    """
    Set up a Python's environment unless it is up to date; return its program.

    Raises:
        CalledProcessError: The set-up failed.
    """
    major, minor, _ = python.version.split(".", 2)
    folder = ROOT / f".venv-{major}{minor}"
    program = folder / "bin" / "python"
    stamp = folder / ".stamp"
    sources = (ROOT / "pyproject.toml", ROOT / PINS[f"{major}.{minor}"])
    is_there = stamp.exists() and stamp.read_text(encoding="utf-8") == python.version
    newest = max(source.stat().st_mtime for source in sources)
    if is_there and stamp.stat().st_mtime >= newest:
        return program
    _say(f"== setting up {folder.name}")
    subprocess.run(
        [UV, "venv", "--quiet", "--clear", "--python", python.program, folder], check=True
    )
    install = ("--editable", f"{ROOT}[{EXTRAS}]", "--constraint", sources[1])
    subprocess.run([UV, "pip", "install", "--quiet", "--python", program, *install], check=True)
    stamp.write_text(python.version, encoding="utf-8")
    return program


def _commands(program: Path, version: str, arguments: list[str]) -> Iterator[list[str]]:
    """Yield the commands for a Python; for this one only those that ``make test`` lacks."""
    python = str(program)
    if program != Path(sys.executable):
        adapter = sorted(str(path) for path in ROOT.glob("tests/rx_backend/test_*.py"))
        tests = ["tests/operators", *adapter, *_FOLDERS, "tests/matrix"]
        options = ("-q", "-m", "not cluster", "--hypothesis-profile=few")
        yield [python, "-m", "pytest", *options, *tests, *arguments]
    if find_spec("uvloop") is not None:
        yield [python, *_MATRIX, "--loop", "uvloop"]
    if version != "3.11":
        yield [python, *_MATRIX, "--eager"]
    yield [python, "-X", "dev", "-W", "error", *_MATRIX, "--debug"]


def _run_all(program: Path, version: str, arguments: list[str]) -> bool:
    """Run a Python's commands; return whether all passed."""
    is_good = True
    for command in _commands(program, version, arguments):
        begun = time.monotonic()
        done = subprocess.run(
            command, cwd=ROOT, env=_environ(), capture_output=True, text=True, check=False
        )
        passed = done.returncode == 0
        is_good = is_good and passed
        lines = done.stdout.splitlines() or [""]
        told = lines[0 if "tests.matrix" in command else -1]
        _say(f"Python {version}, {time.monotonic() - begun:.0f} s: {told}")
        if not passed:
            _say(shlex.join(command), done.stdout, done.stderr)
    return is_good


def _environ() -> dict[str, str]:
    """Return the environment of the tests, with fewer requests than on the main Python."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {"RX_BACKEND_MATRIX": str(REQUESTS), **environ}


def _say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


def main(arguments: list[str]) -> int:
    """Run everything, one Python after the other; return the exit code."""
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    programs = [(Path(sys.executable), running)]
    for version in PINS:
        if version == running:
            continue
        python = find(version)
        if python is None:
            _say(f"no Python {version} here: its tests are left out")
            continue
        programs.append((environment(python), version))
    passed = [_run_all(program, version, arguments) for program, version in reversed(programs)]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
