"""
Build the sdist and the wheel, check them, and use them where nothing else is installed.

The wheel is installed into environments of its own: one with its requirements alone, in which the
README's first example and the command run, and one for each extra. Code that needs an extra works
where the extra is installed; where it is not, the error names it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.document import ROOT

__all__ = (
    "EXTRAS",
    "HEAVY",
    "Environment",
    "PackageError",
    "build",
    "check_files",
    "check_imports",
    "check_refusal",
    "first_example",
    "main",
)


@dataclass(frozen=True)
class Extra:
    """
    What an extra brings.

    Attributes:
        code: Works with the extra.
        modules: The modules that can't be imported without it.
        is_required: Whether *code* fails without it, with an error that names it.
    """

    code: str
    modules: tuple[str, ...] = ()
    is_required: bool = True


_CONFIGURE = (
    "import os; from rx_backend.telemetry import configure; os.environ.update({}); "
    "configure(endpoint='http://127.0.0.1:9').shutdown()"
)

EXTRAS = {
    "cli": Extra("import rich.progress", is_required=False),
    "plot": Extra("from rx_backend.pictures import Timeline; Timeline().png()"),
    "slo": Extra("from operators import SloWindows; SloWindows().snapshot()"),
    "otlp": Extra(_CONFIGURE.format("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL='http/protobuf'")),
    "prometheus": Extra(
        _CONFIGURE.format(
            "OTEL_TRACES_EXPORTER='none', OTEL_METRICS_EXPORTER='prometheus', "
            "OTEL_EXPORTER_PROMETHEUS_PORT='0'"
        )
    ),
    "dynamo": Extra("from rx_backend.errors import Unknown, to_dynamo; to_dynamo(Unknown('x'))"),
    "gguf": Extra("import gguf, tokenizers", is_required=False),
    "engine-openai": Extra(
        "from rx_backend.engines.openai import OpenAIEngine; OpenAIEngine('http://127.0.0.1:9')"
    ),
    "engine-llama-cpp": Extra(
        "from rx_backend.engines.llama_cpp.library import library; library()",
        modules=("rx_backend.engines.llama_cpp.native", "rx_backend.engines.llama_cpp.scheduler"),
    ),
    "web": Extra("import rx_backend.web, tokenizers", modules=("rx_backend.web",)),
    "jetstream": Extra(
        "import rx_backend.resumable.jetstream", modules=("rx_backend.resumable.jetstream",)
    ),
    "notebook": Extra("import ipykernel, matplotlib, nbclient, nbformat", is_required=False),
}
"""What is installed, one after the other."""

HEAVY = ("engine-transformers", "engine-vllm")
"""What takes gigabytes: only whether there are versions that go together is checked."""

_UV = Path(sys.executable).with_name("uv")
_IMPORT_ALL = """
import importlib, json, pkgutil
failed = {}
for name in ("operators", "rx_backend"):
    path = importlib.import_module(name).__path__
    for module in pkgutil.walk_packages(path, name + ".", onerror=lambda _: None):
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            failed[module.name] = str(error)
print(json.dumps(failed))
"""


class PackageError(Exception):
    """What is built is not fit to be published; the message gives the reason."""


class Environment:
    """A virtual environment in *folder*, of this Python, with *requirements* and nothing else."""

    def __init__(self, folder: Path, *requirements: str, constraints: str = "constraints") -> None:
        self._python = folder / "bin" / "python"
        _run(_UV, "venv", "--quiet", "--python", sys.executable, folder)
        # What builds an sdist is pinned as well.
        pins = ROOT / f"{constraints}.txt"
        pinned = ("--constraint", pins, "--build-constraint", pins)
        _run(_UV, "pip", "install", "--quiet", "--python", self._python, *pinned, *requirements)

    def run(self, code: str) -> subprocess.CompletedProcess[str]:
        """Run Python code far from the sources; it may fail."""
        return _try(self._python, "-I", "-c", code)

    def command(self, *arguments: str) -> str:
        """Run the command ``rx-backend``, and return what it prints."""
        return _run(self._python.with_name("rx-backend"), *arguments)

    def imports(self) -> Mapping[str, str]:
        """Import every module of the packages; return what failed, with the error."""
        return json.loads(_run(self._python, "-I", "-c", _IMPORT_ALL))


def build(root: Path, folder: Path) -> tuple[Path, Path]:
    """
    Build the sdist of the project at *root*, and from it the wheel; return their paths.

    Raises:
        PackageError: The build fails, or the sources themselves make another wheel.
    """
    command = (sys.executable, "-m", "build", "--no-isolation", root, "--outdir")
    _run(*command, folder)
    _run(*command, folder / "direct", "--wheel")
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    if wheel.read_bytes() != (folder / "direct" / wheel.name).read_bytes():
        raise PackageError("the sdist makes another wheel than the sources: it lacks files")
    return sdist, wheel


def check_files(*artifacts: Path) -> None:
    """
    Check the metadata of what is built, and the files in wheels.

    Raises:
        PackageError: One is wrong.
    """
    _run(sys.executable, "-m", "twine", "--no-color", "check", "--strict", *artifacts)
    for wheel in artifacts:
        if wheel.suffix == ".whl":
            _run(sys.executable, "-m", "check_wheel_contents", wheel, cwd=ROOT)


def check_imports(failed: Mapping[str, str], installed: Collection[str] = ()) -> None:
    """
    Check that no module failed to import but those whose extra is not among the *installed*.

    Raises:
        PackageError: One did.
    """
    allowed = {
        module
        for name, extra in EXTRAS.items()
        if name not in installed
        for module in extra.modules
    }
    for module, reason in failed.items():
        if module not in allowed:
            raise PackageError(f"{module} can't be imported with its extra: {reason}")


def check_refusal(name: str, done: subprocess.CompletedProcess[str]) -> None:
    """
    Check that code without its extra *name* failed, and that the last line says what to install.

    Raises:
        PackageError: It did not.
    """
    last = (done.stderr.strip().splitlines() or [""])[-1]
    if done.returncode == 0 or f"pip install 'rx-backend[{name}]'" not in last:
        raise PackageError(f"the extra {name} is not asked for where it is missing: {last}")


def first_example(readme: str) -> str:
    """Return the first Python block of a document."""
    found = re.search(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    if found is None:
        raise PackageError("the README has no example")
    return found[1]


def _check_empty(empty: Environment, version: str) -> None:
    """Check what works with the library's requirements alone."""
    example = empty.run(first_example((ROOT / "README.md").read_text(encoding="utf-8")))
    if example.returncode != 0:
        raise PackageError(f"the README's first example fails:\n{example.stderr}")
    if empty.command("--version").split() != ["rx-backend", version]:
        raise PackageError("rx-backend --version tells another version")
    empty.command("--help")
    with TemporaryDirectory() as out:
        empty.command("run", "--synthetic", "--limit", "5", "--no-plot", "--out", out)
    check_imports(empty.imports())
    for name, extra in EXTRAS.items():
        if extra.is_required:
            check_refusal(name, empty.run(extra.code))


def _check_extra(name: str, wheel: Path, folder: Path) -> None:
    """Check what works with the library and one of its extras."""
    pins = "constraints-engines" if name == "engine-llama-cpp" else "constraints"
    environment = Environment(folder / name, f"{wheel}[{name}]", constraints=pins)
    done = environment.run(EXTRAS[name].code)
    if done.returncode != 0:
        raise PackageError(f"the extra {name} is not complete:\n{done.stderr}")
    if EXTRAS[name].modules:
        check_imports(environment.imports(), [name])


def _check_all(folder: Path) -> None:
    sdist, wheel = build(ROOT, folder)
    check_files(sdist, wheel)
    version = wheel.name.split("-")[1]
    _check_empty(Environment(folder / "empty", str(wheel)), version)
    _say("the wheel works with its requirements alone")
    Environment(folder / "sdist", str(sdist)).command("--help")
    for name in EXTRAS:
        _check_extra(name, wheel, folder)
        _say(f"the extra {name} works")
    python = folder / "empty" / "bin" / "python"
    for name in HEAVY:
        _run(_UV, "pip", "install", "--dry-run", "--python", python, f"{wheel}[{name}]")
        _say(f"the extra {name} can be resolved")


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    done = _try(*command, cwd=cwd)
    if done.returncode != 0:
        shown = " ".join(str(word) for word in command if "\n" not in str(word))
        raise PackageError(f"{shown}\n{done.stdout}{done.stderr}")
    return done.stdout


def _try(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command,
        cwd=cwd or Path(sys.prefix),
        env=environ,
        check=False,
        capture_output=True,
        text=True,
    )


def _say(line: str) -> None:
    print(f"{time.perf_counter() - _BEGUN:3.0f} s  {line}", flush=True)


_BEGUN = time.perf_counter()


def main() -> int:
    """Check everything; return the exit code."""
    print("== sdist and wheel", flush=True)
    with TemporaryDirectory() as folder:
        try:
            _check_all(Path(folder))
        except PackageError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
