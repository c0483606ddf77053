"""The command line: what it prints, and its exit codes."""

from __future__ import annotations

import atexit
import json
import re
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import pytest

import rx_backend_cli
from rx_backend.cli import main
from rx_backend.replay import session
from rx_backend.replay.session import TRACE_VARIABLE
from tests.leaks import LeakWatch


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
    """A run says what it replayed, shows the figures, and says where the files are."""
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
        "--engine m:E --engine-arg a=1 --engine-arg b=x --model-path d --vocab-size 11 "
        "--pipeline m:p "
        "--error-rate .3 --seed 4 --real --max-batch 5 --step-ms 6 --step-ms-per-sequence 7 "
        "--prefill-ms-per-token 8 --prefill-chunk-tokens 9 --kv-tokens 10 --out o --no-plot "
        "--no-spans --otlp -- --size 3"
    )
    assert main(["run", *options.split()]) == 0
    assert main(["run"]) == 0
    assert main(["run", "--virtual"]) == 0
    given, default, virtual = seen
    assert virtual == session.RunOptions(real=False)
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
        engine="m:E",
        engine_arg=["a=1", "b=x"],
        own_args=["--size", "3"],
        model_path="d",
        vocab_size=11,
        pipeline="m:p",
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
        ("--max-batch 0", "--max-batch: expected"),
        ("--error-rate 2", "--error-rate: expected"),
        ("--cancel-rate -1", "--cancel-rate: expected"),
        ("--cancel-rate .6 --drop-rate .6", "--cancel-rate and --drop-rate must not sum"),
        ("--vocab-size 9", "--vocab-size: no effect without --engine"),
        ("--engine-arg a=1 --model-path d", "--engine-arg, --model-path: no effect without"),
        ("-- --size 3", "--: no effect without --engine"),
        ("--engine rx_backend.engines:SampleEngine --engine-arg mode=x", "SampleEngine: mode"),
        ("--engine x:E --kv-tokens 0 --step-ms 0", "--step-ms, --kv-tokens: no effect with"),
        ("--engine rx_backend.engines:SampleEngine --vocab-size 1", "--vocab-size: expected"),
        ("--engine rx_backend.engines:Ample", "no attribute 'Ample'"),
        ("--pipeline no_such_module:p", "pipeline no_such_module:p: no module named"),
        ("--pipeline rx_backend.engines:__name__", "expected a Pipeline"),
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


REPLAYED = """
import asyncio
from operators import limit_tokens
from rx_backend import EngineConfig, standard_pipeline
from rx_backend.engines import SampleEngine
from rx_backend.engines.request_checks import check_prompt

class Small(SampleEngine):
    def __init__(self, model_path="path", context=100):
        super().__init__(token_interval_ms=0)
        self.config = EngineConfig(model=model_path, context_length=context)
    async def start(self, worker_id):
        await super().start(worker_id)
        return self.config
    def generate(self, request, context):
        check_prompt(request, context_length=100, vocab_size=50)
        return super().generate(request, context)

class Parsed(Small):
    @classmethod
    async def from_args(cls, argv):
        return cls(*argv, context=90)

class Lost(Small):
    async def start(self, worker_id):
        raise OSError("no\\nweights")

class Untidy(Small):
    async def cleanup(self):
        raise RuntimeError("no way out")

class Slow(Small):
    async def start(self, worker_id):
        raise KeyboardInterrupt

class Stuck(Small):
    async def generate(self, request, context):
        await asyncio.get_running_loop().create_future()

def three(scope):
    return standard_pipeline.insert_after("until_terminal", limit_tokens(3))
"""


@pytest.fixture
def replayed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have engines of a user's own in the current folder."""
    (folder / "replayed.py").write_text(REPLAYED)
    monkeypatch.delitem(sys.modules, "replayed", raising=False)


@pytest.mark.usefixtures("replayed")
def test_run_with_an_engine_and_a_pipeline(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table and the summary name them, and show what they do."""
    chosen = "--engine replayed:Small --pipeline replayed:three --vocab-size 50 --virtual"
    given = "--model-path tiny --engine-arg context=90"
    assert main(["run", *chosen.split(), *given.split(), "--limit", "9", "--no-plot"]) == 0
    out = capsys.readouterr().out
    assert "engine: Small, pipeline replayed:three, virtual time\n" in out
    assert "  truncated               9  to the context of 90 tokens\n" in out
    assert "output tokens            27 " in out
    summary = json.loads((folder / "rx-backend-run" / "summary.json").read_text())
    assert summary["title"].endswith("; Small, pipeline replayed:three, model tiny")
    assert (summary["completed"], summary["errors"]) == (9, {})


@pytest.mark.usefixtures("replayed")
def test_run_with_an_engine_that_reads_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    """What follows two dashes is for the engine's own parser, and for nobody else."""
    run = ("run", "--engine", "replayed:Parsed", "--limit", "9", "--vocab-size", "50", "--no-plot")
    assert main([*run, "--virtual", "--", "--tiny"]) == 0
    assert "  truncated               9  to the context of 90 tokens\n" in capsys.readouterr().out
    assert "--engine-arg: no effect" in complaint(capsys, *run, "--engine-arg", "a=1", "--", "b")
    assert "--model-path: no effect" in complaint(capsys, *run, "--model-path", "d", "--", "b")


@pytest.mark.usefixtures("replayed")
def test_run_with_an_engine_takes_real_time(capsys: pytest.CaptureFixture[str]) -> None:
    """With fewer requests by default; what the engine refuses is counted by its kind."""
    assert main(["run", "--engine", "replayed:Small", "--speed", "1e9", "--no-plot"]) == 0
    out = capsys.readouterr().out
    assert ", 40 requests (--limit all replays the whole), at 1e+09 times the speed" in out
    assert "engine: Small, real clock\n" in out
    assert "  errors                 40  InvalidArgument 40\n" in out


@pytest.mark.usefixtures("replayed")
@pytest.mark.parametrize(
    ("chosen", "message", "stopped"),
    [
        ("Lost", "Lost.start raised OSError: no weights", None),
        ("Untidy --virtual", "Untidy.cleanup raised RuntimeError: no way out", "after 2 of 2"),
        ("Slow", "", "after 0 of 2"),
        ("Stuck --virtual", "Stuck waits for something outside the event loop", None),
    ],
)
def test_run_with_an_engine_that_fails(
    capsys: pytest.CaptureFixture[str],
    leaks: LeakWatch,
    chosen: str,
    message: str,
    stopped: str | None,
) -> None:
    """It ends with one line, and the table of what was done before; without one if it never began."""
    leaks.allow("task not done")  # by a loop that stands still
    engine = f"replayed:{chosen}".split()
    code = main(["run", "--limit", "2", "--no-plot", "--engine", *engine])
    assert code == (1 if message else 130)
    out, err = capsys.readouterr()
    assert err.count("\n") == bool(message)
    assert message in err
    assert (f"stopped early {stopped}" in out) == ("TTFT" in out) == (stopped is not None)


@pytest.mark.usefixtures("replayed")
@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["--max-batch", "many"], 2, "(see rx-backend run --help)"),
        (["--max-batch", "0"], 2, "--max-batch: expected"),
        (["--engine", "replayed:Lost"], 1, "Lost.start raised OSError: no weights"),
    ],
)
def test_an_error_has_the_form_of_the_log(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    named: str,
) -> None:
    """A line of JSON where the log's are, for what reads them; else of text."""
    monkeypatch.setenv("DYN_LOGGING_JSONL", "1")

    def error() -> str:
        with suppress(SystemExit):
            assert main(["run", *arguments]) == code
        return capsys.readouterr().err

    line = json.loads(error())
    assert (line["level"], line["target"]) == ("ERROR", "rx_backend")
    assert named in line["message"]
    monkeypatch.setenv("DYN_LOGGING_CONSOLE_FORMAT", "xml")
    assert re.match("rx-backend( run)?: error: ", error())


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("walk",),
        ("run", "--limit", "0"),
        ("run", "--limit", "x"),
        ("run", "--seed", "x"),
        ("run", "--real", "--virtual"),
    ],
)
def test_bad_usage_exits_with_code_2(arguments: tuple[str, ...]) -> None:
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


@pytest.mark.parametrize("closed", [[0], [1], [0, 1, 2]])
def test_standard_streams_that_are_closed(closed: list[int]) -> None:
    """What would be written there is lost, and no other file gets their numbers."""
    close = "; ".join(f"os.close({number})" for number in closed)
    command = f"{sys.executable} -m rx_backend_cli conformance rx_backend.engines:SampleEngine"
    code = f"import os; {close}; os.execv({sys.executable!r}, {command.split()!r})"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("ended", "code", "said"), [("3", 3, ""), ("None", 0, ""), ("'no licence'", 1, "no licence\n")]
)
def test_an_exit_keeps_its_code(ended: str, code: int, said: str) -> None:
    """An engine's library may call `sys.exit`; that the runtime is loaded changes nothing."""
    program = f"""
import sys, types
import rx_backend_cli, rx_backend.cli

def run():
    sys.modules["dynamo"] = types.ModuleType("dynamo")
    sys.exit({ended})

rx_backend.cli.main = run
sys.exit(rx_backend_cli.main())
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", said)


def test_the_process_exits_despite_the_runtimes_threads() -> None:
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
def test_an_unwritable_report_is_an_error() -> None:
    """It is an error in one line, with no traceback when the interpreter exits."""
    command = [sys.executable, "-m", "rx_backend_cli", "conformance"]
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


@pytest.mark.parametrize(
    "command", [["run", "--limit", "2"], ["conformance", "rx_backend.engines:SampleEngine"]]
)
def test_a_broken_pipe_is_silent(command: list[str]) -> None:
    """As `head` does when it has its line: the command ends in silence, as SIGPIPE ends others."""
    done = subprocess.Popen(
        [sys.executable, "-m", "rx_backend_cli", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with done:
        assert done.stdout is not None
        assert done.stderr is not None
        done.stdout.close()
        assert done.stderr.read() == b""
    assert done.returncode == 141


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


def test_conformance_of_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What names no engine ends with 2 and one line that says why, however long that is."""
    (folder / "broken_here.py").write_text("raise RuntimeError('two\\nlines')\n")
    assert "two lines" in complaint(capsys, "conformance", "broken_here:Engine")


@pytest.mark.rows("K1")
def test_conformance_takes_arguments_for_the_engine(capsys: pytest.CaptureFixture[str]) -> None:
    """As serve and run do; those that the engine has no use for are an error."""
    engine = "rx_backend.engines:SampleEngine"
    assert main(["conformance", engine, "--engine-arg", "token_interval_ms=1"]) == 0
    capsys.readouterr()
    assert "takes no model_path" in complaint(capsys, "conformance", engine, "--model-path", "d")
    assert "expected a method from_args" in complaint(capsys, "conformance", engine, "--", "--fast")


def test_light_start() -> None:
    """Asking for help imports neither plotting nor replays."""
    code = "import sys, rx_backend.cli as cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
    code += "print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert "rx_backend.cli" in modules
    heavy = {"matplotlib", "numpy", "rx_backend.replay", "rx_backend.testing"}
    assert not heavy & modules
