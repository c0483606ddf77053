"""The command `rx-backend`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

__all__ = ("main",)

_FAILED, _BAD_USAGE, _INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the command.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        The exit code: 0 for success, 1 for an engine that fails or breaks the contract, 2 for bad
        usage or input, 130 when interrupted.
    """
    try:
        arguments = _parser().parse_args(argv)
        command: Callable[[argparse.Namespace], int] = arguments.command
        return command(arguments)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except (_BadUsage, OSError) as error:
        return _complain(str(error))
    finally:
        _drop_unwritten()


class _BadUsage(Exception):
    """Input that can't be used; the message says why in one line."""


def _complain(message: str, code: int = _BAD_USAGE) -> int:
    with suppress(OSError):
        sys.stderr.write(f"rx-backend: error: {' '.join(message.split())}\n")
    return code


def _say(line: str) -> None:
    """Print a line; one that can't be written, as on a full disk, is lost."""
    with suppress(OSError):
        print(line, flush=True)  # noqa: T201 - its purpose


def _drop_unwritten() -> None:
    """Drop what could not be written, which the interpreter would fail to write when it exits."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:  # noqa: PTH123
                os.dup2(nowhere.fileno(), stream.fileno())
        except ValueError:  # closed
            continue


def _run(arguments: argparse.Namespace) -> int:
    from rx_backend.errors import InvalidArgument  # noqa: PLC0415  # a light start
    from rx_backend.replay.session import RunOptions, run  # noqa: PLC0415  # a light start

    given = {name: value for name, value in vars(arguments).items() if value is not None}
    del given["command"]
    try:
        run(RunOptions(**given), say=partial(print, flush=True))
    except InvalidArgument as error:
        raise _BadUsage(error.message) from error
    return 0


def _conformance(arguments: argparse.Namespace) -> int:
    from rx_backend.errors import InvalidArgument  # noqa: PLC0415  # a light start
    from rx_backend.testing import load_engine_factory, run_conformance  # noqa: PLC0415  # the same

    # As with `python -m`: a module in the current folder is found.
    sys.path.insert(0, "")
    try:
        factory = load_engine_factory(arguments.engine)
    except InvalidArgument as error:
        raise _BadUsage(error.message) from error
    report = run_conformance(factory, virtual=not arguments.real)
    sys.stdout.write(f"{report}\n")
    return 0 if report.ok else _FAILED


def _serve(arguments: argparse.Namespace) -> int:
    from rx_backend.worker.options import ServeOptions  # noqa: PLC0415  # a light start
    from rx_backend.worker.serve import prepare_worker  # noqa: PLC0415  # the same

    # As with `python -m`: a module in the current folder is found.
    sys.path.insert(0, "")
    return _on_runtime(lambda: prepare_worker(ServeOptions(**vars(arguments))))


def _frontend(arguments: argparse.Namespace) -> int:
    from rx_backend.worker.frontend import prepare_frontend  # noqa: PLC0415  # a light start
    from rx_backend.worker.options import FrontendOptions  # noqa: PLC0415  # the same

    return _on_runtime(lambda: prepare_frontend(FrontendOptions(**vars(arguments))))


def _on_runtime(prepare: Callable[[], Callable[[Callable[[str], object]], None]]) -> int:
    """Run what *prepare* returns; its own errors are bad usage, later ones are failures."""
    from rx_backend.errors import BackendError, InvalidArgument  # noqa: PLC0415  # a light start

    try:
        run = prepare()
    except InvalidArgument as error:
        raise _BadUsage(error.message) from error
    try:
        run(_say)
    except BackendError as error:
        return _complain(str(error), _FAILED)
    return 0


class _Parser(argparse.ArgumentParser):
    """Complains in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(_BAD_USAGE, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    from rx_backend.worker.options import (  # noqa: PLC0415  # a light start
        add_frontend_options,
        add_serve_options,
    )

    parser = _Parser(
        prog="rx-backend", description="Token streams of LLM engines as pipelines of operators."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_run(commands.add_parser("run", help=_RUN, description=_RUN, epilog=_RUN_MORE))
    conformance = commands.add_parser("conformance", help=_CONFORMANCE, description=_CONFORMANCE)
    conformance.add_argument("engine", metavar="module:Engine", help="called to make the engine")
    conformance.add_argument(
        "--real", action="store_true", help="on the real clock; virtual time by default"
    )
    conformance.set_defaults(command=_conformance)
    serve = commands.add_parser("serve", help=_SERVE, description=_SERVE, epilog=_SERVE_MORE)
    add_serve_options(serve, os.environ)
    serve.set_defaults(command=_serve)
    frontend = commands.add_parser(
        "frontend", help=_FRONTEND, description=_FRONTEND, epilog=_SERVE_MORE
    )
    add_frontend_options(frontend, os.environ)
    frontend.set_defaults(command=_frontend)
    return parser


_RUN = "Replay a workload through the adapter over a simulated engine, and report."
_RUN_MORE = (
    "The workload is --trace, else the file that RX_BACKEND_TRACE names, else "
    "../shared/data/azure_llm_conv_2023.csv where it exists, else a synthetic one of that shape."
)
_SERVE = "Serve an engine as a worker on NVIDIA Dynamo's runtime, until a signal ends it."
_FRONTEND = "Serve the OpenAI API for the workers in discovery, until a signal ends it."
_SERVE_MORE = (
    "Each option can be set by the environment variable in brackets too. With file discovery, "
    "workers and frontends of one machine meet in the folder that DYN_FILE_KV names."
)
_CONFORMANCE = "Check that an engine keeps to the contract; exit code 1 when it does not."


def _add_run(parser: argparse.ArgumentParser) -> None:
    from rx_backend.telemetry.switch import add_otlp_flag  # noqa: PLC0415  # a light start

    add = parser.add_argument_group("workload").add_argument
    add("--trace", type=Path, metavar="FILE", help="an Azure LLM inference trace, as CSV")
    add("--synthetic", action="store_true", help="no trace, the synthetic workload")
    add(
        "--limit",
        type=_limit,
        metavar="N",
        help="most requests, or 'all'; by default 4000, and 40 with --real",
    )
    add("--speed", type=float, metavar="X", help="arrivals X times as fast (1)")
    add("--cancel-rate", type=float, metavar="R", help="part of the clients that stop, 0 to 1 (0)")
    add("--drop-rate", type=float, metavar="R", help="part that close their stream, 0 to 1 (0)")
    add("--error-rate", type=float, metavar="R", help="part that the engine fails, 0 to 1 (0)")
    add("--seed", type=int, metavar="N", help="decides everything that is drawn (0)")
    clock = parser.add_argument_group("clock").add_mutually_exclusive_group()
    clock.add_argument("--virtual", dest="real", action="store_false", help="the default")
    clock.add_argument("--real", dest="real", action="store_true", help="wait in real time")
    add = parser.add_argument_group("engine").add_argument
    add("--max-batch", type=int, metavar="N", help="most requests that run together (128)")
    add("--step-ms", type=float, metavar="MS", help="base time of a step (15)")
    add(
        "--step-ms-per-sequence",
        type=float,
        metavar="MS",
        help="added per sequence that decodes in a step (0.1)",
    )
    add(
        "--prefill-ms-per-token",
        type=float,
        metavar="MS",
        help="added per prompt token of a step (0.05)",
    )
    add("--prefill-chunk-tokens", type=int, metavar="N", help="most prompt tokens a step (2048)")
    add("--kv-tokens", type=int, metavar="N", help="size of the KV cache in tokens (no limit)")
    add = parser.add_argument_group("output").add_argument
    add("--out", type=Path, metavar="DIR", help="folder to write to (rx-backend-run)")
    add("--no-plot", dest="plot", action="store_false", help="no replay.png")
    add("--no-spans", dest="spans", action="store_false", help="no spans.jsonl")
    add_otlp_flag(parser)
    parser.set_defaults(command=_run, real=False)


class _Version(argparse.Action):
    """Prints the version; looks it up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        sys.stdout.write(f"{parser.prog} {version('rx-backend')}\n")
        parser.exit()


def _limit(text: str) -> int:
    if text == "all":
        return 0
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1, or 'all', got {text!r}")
    return number


if __name__ == "__main__":
    sys.exit(main())
