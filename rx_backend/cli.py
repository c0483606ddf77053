"""The command `rx-backend`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from rx_backend.errors import BackendError, InvalidArgument, Unknown

__all__ = ("main",)

# The last two are those of a shell, for a process that SIGINT or SIGPIPE has ended.
_FAILED, _BAD_USAGE, _INTERRUPTED, _UNREAD = 1, 2, 130, 141

_ENGINE = "class or function that makes the engine"


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the command.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        The exit code: 0 for success, 1 for an engine that fails or breaks the contract, 2 for bad
        usage or input, 130 when interrupted, 141 when the reader of its output is gone, as with
        ``| head -1``.
    """
    try:
        parser = _parser()
        argv = sys.argv[1:] if argv is None else argv
        end = argv.index("--") if "--" in argv else len(argv)
        arguments = parser.parse_args(argv[:end])
        if end < len(argv):
            if not hasattr(arguments, "own_args"):
                parser.error("--: this command takes no engine arguments")
            arguments.own_args = argv[end + 1 :]
        command: Callable[[argparse.Namespace], int] = arguments.command
        return command(arguments)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        return _UNREAD
    except (InvalidArgument, OSError) as error:
        message = error.message if isinstance(error, InvalidArgument) else str(error)
        return _complain(message, _BAD_USAGE)
    finally:
        _drop_unwritten()


def _complain(message: str, code: int) -> int:
    from rx_backend.telemetry.logs import error_line  # noqa: PLC0415  # a light start

    with suppress(OSError):
        sys.stderr.write(f"{error_line('rx-backend', message)}\n")
    return code


def _say(line: str) -> None:
    """Print a line; ignore that it can't be written, as on a full disk."""
    with suppress(OSError):
        print(line, flush=True)  # noqa: T201 - its purpose


def _drop_unwritten() -> None:
    """Drop unwritten output, on which the interpreter would fail at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:  # noqa: PTH123
                os.dup2(nowhere.fileno(), stream.fileno())
        except ValueError:  # closed
            continue


def _search_current_folder() -> None:
    """Let modules in the current folder be found, as with ``python -m``; after our imports."""
    sys.path.insert(0, "")


def _run(arguments: argparse.Namespace) -> int:
    from rx_backend.replay.session import RunOptions, run  # noqa: PLC0415  # a light start

    _search_current_folder()
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    del given["command"]
    # The table counts failures; a log line for each would drown it.
    requests = logging.getLogger("rx_backend.requests")
    level = requests.level
    requests.setLevel(level or logging.ERROR)
    try:
        run(RunOptions(**given), say=partial(print, flush=True))
    except Unknown as error:
        return _complain(error.message, _FAILED)
    finally:
        requests.setLevel(level)
    return 0


def _conformance(arguments: argparse.Namespace) -> int:
    from rx_backend.testing import run_conformance  # noqa: PLC0415  # the same
    from rx_backend.testing.engine_making import engine_maker  # noqa: PLC0415  # the same

    _search_current_folder()
    path = arguments.model_path
    maker = engine_maker(
        arguments.engine, arguments.engine_arg, arguments.own_args, model_path=path
    )
    if path is not None and "model_path" not in maker.arguments:
        raise InvalidArgument(f"--model-path: engine {arguments.engine} takes no model_path")
    report = run_conformance(maker, virtual=not arguments.real)
    print(report, flush=True)  # noqa: T201 - its purpose
    return 0 if report.ok else _FAILED


def _serve(arguments: argparse.Namespace) -> int:
    from rx_backend.worker.options import ServeOptions  # noqa: PLC0415  # a light start
    from rx_backend.worker.serve import prepare_worker  # noqa: PLC0415  # the same

    _search_current_folder()
    return _on_runtime(prepare_worker(ServeOptions(**vars(arguments))))


def _frontend(arguments: argparse.Namespace) -> int:
    from rx_backend.worker.frontend import prepare_frontend  # noqa: PLC0415  # a light start
    from rx_backend.worker.options import FrontendOptions  # noqa: PLC0415  # the same

    return _on_runtime(prepare_frontend(FrontendOptions(**vars(arguments))))


def _dynamo(arguments: argparse.Namespace) -> int:
    from rx_backend.worker.dynamo_worker import run_module  # noqa: PLC0415  # a light start

    _search_current_folder()
    given = {name: value for name, value in vars(arguments).items() if name != "command"}
    return run_module(**given, say=_say)


def _on_runtime(run: Callable[[Callable[[str], object]], None]) -> int:
    from rx_backend.worker.bad_setting import BadSetting  # noqa: PLC0415  # a light start

    try:
        run(_say)
    except BadSetting:
        raise
    except BackendError as error:
        return _complain(str(error), _FAILED)
    return 0


class _Parser(argparse.ArgumentParser):
    """Reports errors in one line."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments"):
            message += "; pass an engine's own arguments as --engine-arg name=value"
        from rx_backend.telemetry.logs import error_line  # noqa: PLC0415  # a light start

        line = error_line(self.prog, f"{message} (see {self.prog} --help)")
        self.exit(_BAD_USAGE, f"{line}\n")


def _parser() -> argparse.ArgumentParser:
    from rx_backend.worker.options import (  # noqa: PLC0415  # a light start
        add_dynamo_options,
        add_frontend_options,
        add_serve_options,
    )

    parser = _Parser(
        prog="rx-backend", description="Token streams of LLM engines as pipelines of operators."
    )
    shown = f"rx-backend {version('rx-backend')}"
    parser.add_argument("--version", action="version", version=shown)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    text = "Replay a workload through the adapter over an engine, a simulated one by default."
    _add_run(commands.add_parser("run", help=text, description=text, epilog=_WORKLOADS))
    text = "Check that an engine follows the contract; exit with code 1 if it does not."
    conformance = commands.add_parser("conformance", help=text, description=text)
    conformance.add_argument("engine", metavar="module:Engine", help=_ENGINE)
    conformance.add_argument(
        "--real", action="store_true", help="use the real clock instead of virtual time"
    )
    conformance.add_argument("--model-path", metavar="PATH", help="the engine's model_path")
    _add_engine_arguments(conformance)
    conformance.set_defaults(command=_conformance)
    text = "Serve an engine as a worker on NVIDIA Dynamo's runtime, until a signal ends it."
    serve = commands.add_parser("serve", help=text, description=text, epilog=_VARIABLES)
    _add_engine_arguments(serve)
    add_serve_options(serve, os.environ)
    serve.set_defaults(command=_serve)
    text = "Serve the OpenAI API for the workers in discovery, until a signal ends it."
    frontend = commands.add_parser("frontend", help=text, description=text, epilog=_VARIABLES)
    add_frontend_options(frontend, os.environ)
    frontend.set_defaults(command=_frontend)
    text = "Run one of Dynamo's own workers, like dynamo.vllm, with a pipeline around its answers."
    dynamo = commands.add_parser("dynamo", help=text, description=text)
    add_dynamo_options(dynamo)
    dynamo.set_defaults(command=_dynamo)
    return parser


_WORKLOADS = (
    "The workload is --trace, else the file that RX_BACKEND_TRACE names, else a synthetic one in the "
    "shape of Azure's conversation trace of 2023."
)
_VARIABLES = (
    "Defaults are in parentheses, environment variables that set an option in brackets. With file "
    "discovery, workers and frontends of a machine find each other in the folder DYN_FILE_KV."
)


def _add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Let a command take engine arguments; those after ``--`` are for the engine's own parser."""
    text = "engine argument, JSON or text; repeatable. Arguments after -- go to its from_args"
    metavar = "NAME=VALUE"
    parser.add_argument("--engine-arg", action="append", default=[], metavar=metavar, help=text)
    parser.set_defaults(own_args=())


def _add_run(parser: argparse.ArgumentParser) -> None:
    from rx_backend.telemetry.switch import add_otlp_flag  # noqa: PLC0415  # a light start

    for title, options in _RUN_OPTIONS.items():
        add = parser.add_argument_group(title).add_argument
        for flag, kind, metavar, text in options:
            add(flag, type=kind, metavar=metavar, help=text)
    add = parser.add_argument
    _add_engine_arguments(parser)
    add("--synthetic", action="store_true", help="use the synthetic workload instead of a trace")
    clock = parser.add_mutually_exclusive_group().add_argument
    clock("--real", dest="real", action="store_true", help="real time; the default with --engine")
    virtual = "virtual time, the default; for engines that wait only through asyncio"
    clock("--virtual", dest="real", action="store_false", help=virtual)
    add("--no-plot", dest="plot", action="store_false", help="don't write replay.png")
    add("--no-spans", dest="spans", action="store_false", help="don't write spans.jsonl")
    add_otlp_flag(parser)
    parser.set_defaults(command=_run, real=None, engine_arg=None, own_args=None)


def _limit(text: str) -> int:
    if text == "all":
        return 0
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1, or 'all', got {text!r}")
    return int(text)


_RUN_OPTIONS: dict[str, list[tuple[str, Callable[[str], object], str, str]]] = {
    "workload": [
        ("--trace", Path, "FILE", "Azure 2023 to 2025 or BurstGPT as CSV, Mooncake as JSON Lines"),
        ("--limit", _limit, "N", "maximum number of requests, or 'all' (4000; 40 in real time)"),
        ("--speed", float, "X", "arrivals X times as fast (1)"),
        ("--cancel-rate", float, "R", "fraction of clients that stop, 0 to 1 (0)"),
        ("--drop-rate", float, "R", "fraction that disconnect, 0 to 1 (0)"),
        ("--seed", int, "N", "seed of all random choices (0)"),
    ],
    "engine": [
        ("--engine", str, "module:Engine", f"{_ENGINE} (simulated)"),
        ("--model-path", str, "PATH", "the engine's model_path"),
        ("--vocab-size", int, "N", "draw the prompts' token ids below N (256)"),
        ("--pipeline", str, "module:name", "a pipeline, or a function that returns one"),
    ],
    "simulated engine": [
        ("--error-rate", float, "R", "fraction of requests that fail, 0 to 1 (0)"),
        ("--max-batch", int, "N", "maximum requests in a batch (128)"),
        ("--step-ms", float, "MS", "base time of a step (15)"),
        ("--step-ms-per-sequence", float, "MS", "added per sequence that decodes in a step (0.1)"),
        ("--prefill-ms-per-token", float, "MS", "added per prompt token of a step (0.05)"),
        ("--prefill-chunk-tokens", int, "N", "maximum prompt tokens per step (2048)"),
        ("--kv-tokens", int, "N", "size of the KV cache in tokens (no limit)"),
    ],
    "output": [("--out", Path, "DIR", "folder to write to (rx-backend-run)")],
}
