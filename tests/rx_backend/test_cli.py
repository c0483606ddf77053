"""The command line: what it prints, and its exit codes."""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import rx_backend_cli
from rx_backend.cli import main
from rx_backend.replay import session
from rx_backend.replay.session import TRACE_VARIABLE


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, with no trace in sight, and with the import path put back."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.delenv(TRACE_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return here


def usage_error(*arguments: str) -> int:
    """Run with arguments that the parser itself refuses; give the exit code."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run with bad input; give the one line that is printed about it."""
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


def test_run_prints_the_table_and_writes_files(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run says what it replayed, shows the figures, and tells where the files are."""
    arguments = ["run", "--limit", "15", "--out", "there", "--no-plot", "--cancel-rate", "0.5"]
    assert main([*arguments, "--seed", "3"]) == 0
    out = capsys.readouterr().out
    for part in ("workload: synthetic", "15 requests", "virtual time", "TTFT, ms", "ITL, ms"):
        assert part in out
    assert str(Path("there", "requests.jsonl")) in out
    summary = json.loads((folder / "there" / "summary.json").read_text())
    assert summary["requests"] == 15
    assert summary["cancelled"] > 0
    assert not (folder / "there" / "replay.png").exists()


def test_every_option_reaches_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each option of `run` is a field of the run's options, and none is forgotten."""
    seen: list[session.RunOptions] = []
    monkeypatch.setattr(session, "run", lambda options, say: seen.append(options))  # pyright: ignore[reportUnknownArgumentType, reportUnknownLambdaType]
    options = (
        "--trace t.csv --synthetic --limit all --speed 2 --cancel-rate .1 --drop-rate .2 "
        "--error-rate .3 --seed 4 --real --max-batch 5 --step-ms 6 --step-ms-per-sequence 7 "
        "--prefill-ms-per-token 8 --prefill-chunk-tokens 9 --kv-tokens 10 --out o --no-plot "
        "--no-spans --otlp"
    )
    assert main(["run", *options.split()]) == 0
    assert main(["run", "--virtual"]) == 0
    given, default = seen
    assert default == session.RunOptions()
    assert given == session.RunOptions(
        trace=Path("t.csv"),
        synthetic=True,
        limit=0,
        speed=2,
        cancel_rate=0.1,
        drop_rate=0.2,
        error_rate=0.3,
        seed=4,
        real=True,
        max_batch=5,
        step_ms=6,
        step_ms_per_sequence=7,
        prefill_ms_per_token=8,
        prefill_chunk_tokens=9,
        kv_tokens=10,
        out=Path("o"),
        plot=False,
        spans=False,
        otlp="true",
    )
    fields = session.RunOptions.__struct_fields__
    assert [name for name in fields if getattr(given, name) == getattr(default, name)] == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("--max-batch 0", "max_batch"),
        ("--error-rate 2", "error_rate"),
        ("--cancel-rate -1", "cancel_rate"),
        ("--trace none.csv", "none.csv"),
        ("--trace bad.csv", "bad.csv"),
        ("--out bad.csv", "bad.csv"),
    ],
)
def test_bad_values_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: str, named: str
) -> None:
    """Values out of range, bad traces and unwritable folders end with 2 and one line."""
    (folder / "bad.csv").write_text("a,b\n1,2\n")
    run = ("run", "--no-plot", "--limit", "2")
    assert named in complaint(capsys, *run, *arguments.split())


@pytest.mark.parametrize(
    "arguments",
    [(), ("walk",), ("run", "--limit", "0"), ("run", "--limit", "x"), ("run", "--seed", "x")],
)
def test_bad_usage_ends_with_two(arguments: tuple[str, ...]) -> None:
    """What the parser can't make sense of ends with exit code 2."""
    assert usage_error(*arguments) == 2


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An interrupt ends a run in silence, with the shell's code for it."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "run", interrupted)
    assert main(["run"]) == 130
    assert capsys.readouterr() == ("", "")


def test_interrupted_during_the_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take a while on a busy machine, and are as silent."""

    class Interrupting:
        def find_spec(self, *_: object) -> None:
            raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "rx_backend.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupting()])
    monkeypatch.setattr(atexit, "register", id)
    assert rx_backend_cli.main() == 130


@pytest.mark.parametrize("closed", [[0], [1], [2], [1, 2], [0, 1, 2]])
def test_standard_streams_that_are_closed(closed: list[int]) -> None:
    """What would be written there is lost, and no other file gets their numbers."""
    close = "; ".join(f"os.close({number})" for number in closed)
    command = f"{sys.executable} -m rx_backend.cli conformance rx_backend.engines:SampleEngine"
    code = f"import os; {close}; os.execv({sys.executable!r}, {command.split()!r})"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_process_ends_behind_the_runtime() -> None:
    """It is not finalized, as the runtime's threads may be at work; what is registered has run."""
    code = """
import atexit, sys, types
import rx_backend_cli, rx_backend.cli

class Late:
    def __del__(self):
        print("finalized")

def run():
    atexit.register(print, "registered", flush=True)
    sys.modules["dynamo"] = types.ModuleType("dynamo")
    return 3

rx_backend.cli.main = run
late = Late()
sys.exit(rx_backend_cli.main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "registered\n", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
def test_a_report_that_can_not_be_written() -> None:
    """It is an error in one line, with no traceback when the interpreter exits."""
    command = [sys.executable, "-m", "rx_backend.cli", "conformance"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*command, "rx_backend.engines:SampleEngine"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The version is the distribution's."""
    assert usage_error("--version") == 0
    assert capsys.readouterr().out == f"rx-backend {version('rx-backend')}\n"


BAD_ENGINE = """
from rx_backend.engine import EngineConfig, LLMEngine
from rx_backend.protocols import LLMEngineOutput

class Bad(LLMEngine):
    async def start(self, worker_id):
        return EngineConfig(model="bad")
    async def generate(self, request, context):
        yield LLMEngineOutput.token(1)
"""


@pytest.mark.rows("K1")
def test_conformance_decides_on_the_exit_code(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine in the current folder that breaks rules ends with 1, a good one with 0."""
    assert main(["conformance", "rx_backend.engines:SampleEngine"]) == 0
    assert "SampleEngine" in capsys.readouterr().out
    (folder / "bad_engine_here.py").write_text(BAD_ENGINE)
    monkeypatch.delitem(sys.modules, "bad_engine_here", raising=False)
    assert main(["conformance", "bad_engine_here:Bad"]) == 1
    assert "no_terminal" in capsys.readouterr().out


@pytest.mark.parametrize("target", ["no colon", "no_such_module:Engine", "broken_here:Engine"])
def test_conformance_of_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    """What names no engine ends with 2 and one line that says why."""
    (folder / "broken_here.py").write_text("raise RuntimeError('two\\nlines')\n")
    assert "engine" in complaint(capsys, "conformance", target)


def test_light_start() -> None:
    """Asking for help imports neither plotting nor replays."""
    code = "import sys, rx_backend.cli as cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
    code += "print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert "rx_backend.cli" in modules
    heavy = {"matplotlib", "numpy", "rx_backend.replay", "rx_backend.testing"}
    assert not heavy & modules
