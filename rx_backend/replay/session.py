"""One run, from options to files, for `rx-backend run`."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from msgspec import Struct

from operators.assembly import loop_clock
from rx_backend.checks import integer, number
from rx_backend.engine import LLMEngine
from rx_backend.engines import SimulatedEngine
from rx_backend.errors import BackendError, InvalidArgument, Unknown
from rx_backend.replay.figures import ReplayResult, stop_reason
from rx_backend.replay.progress import progress
from rx_backend.replay.report import format_table, summarize, write_requests, write_summary
from rx_backend.replay.runner import check_rates, replay
from rx_backend.replay.traces import Trace, read_trace
from rx_backend.replay.workload import MIN_SPEED, Request, at_speed, synthetic
from rx_backend.telemetry.switch import OtlpSwitch, report_telemetry
from rx_backend.testing import Deadlock, run_virtual
from rx_backend.testing.engine_loading import load_pipeline
from rx_backend.testing.engine_making import engine_maker

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

__all__ = ("TRACE_VARIABLE", "RunOptions", "run")

TRACE_VARIABLE = "RX_BACKEND_TRACE"
"""Environment variable with the path of the default trace."""

_LIMIT, _REAL_LIMIT = 4000, 40
_VOCAB = 256
"""Every tokenizer has at least this many ids."""
_OF_ENGINE = ("engine_arg", "own_args", "model_path", "vocab_size")
_SIMULATED = (
    "error_rate",
    "max_batch",
    "step_ms",
    "step_ms_per_sequence",
    "prefill_ms_per_token",
    "prefill_chunk_tokens",
    "kv_tokens",
)
_SUMMARY, _REQUESTS, _SPANS, _PLOT = "summary.json", "requests.jsonl", "spans.jsonl", "replay.png"
_FILES = _SUMMARY, _REQUESTS, _SPANS, _PLOT


class RunOptions(Struct, kw_only=True, frozen=True):
    """The options of a run; the last ones are the parameters of `SimulatedEngine`."""

    trace: Path | None = None
    """The trace; None for the one that `RX_BACKEND_TRACE` names, else a synthetic workload."""
    synthetic: bool = False
    """Always use the synthetic workload."""
    limit: int | None = None
    """Maximum number of requests; 0 for all; None for 4,000, or for 40 on the real clock."""
    speed: float = 1.0
    """Factor on the arrival rate, at least 1e-6."""
    cancel_rate: float = 0.0
    drop_rate: float = 0.0
    seed: int = 0
    engine: str | None = None
    """``module:name`` of an engine; None for the simulated one."""
    engine_arg: list[str] | None = None
    """Its keyword arguments, ``name=value`` each."""
    own_args: Sequence[str] | None = None
    """Arguments for its own parser, ``from_args``, instead."""
    model_path: str | None = None
    """The engine's argument ``model_path``."""
    vocab_size: int | None = None
    """With *engine*, prompts are random token ids below this; None for 256."""
    pipeline: str | None = None
    """``module:name`` of a pipeline, or of a function that returns one; None for the standard one."""
    real: bool | None = None
    """Whether to run on the real clock, not in virtual time; None: if there is an *engine*."""
    out: Path = Path("rx-backend-run")
    """The output folder; created if missing. Files of an earlier run in it are removed."""
    plot: bool = True
    spans: bool = True
    otlp: str | None = None
    """The OTLP endpoint: a URL, or `true`; None for the value of `RX_BACKEND_OTLP`."""
    error_rate: float | None = None
    max_batch: int | None = None
    step_ms: float | None = None
    step_ms_per_sequence: float | None = None
    prefill_ms_per_token: float | None = None
    prefill_chunk_tokens: int | None = None
    kv_tokens: int | None = None

    @property
    def on_real_clock(self) -> bool:
        """Whether to run on the real clock."""
        return self.engine is not None if self.real is None else self.real


def run(
    options: RunOptions,
    *,
    say: Callable[[str], None] = print,
    live: TextIO | None = None,
) -> ReplayResult:
    """
    Replay a workload, print its table, and write its files.

    If the run is interrupted, or a row of the trace is invalid, the table and the files have the
    results so far, and say so.

    Args:
        options: The options.
        say: Prints a line.
        live: The output for progress; standard error by default.

    Returns:
        The figures.

    Raises:
        InvalidArgument: An option is out of its range or contradicts another, the engine or the
            pipeline can't be loaded, the trace is invalid, or telemetry can't be enabled.
        Unknown: The engine's `start`, `drain` or `cleanup` failed.
        KeyboardInterrupt: The run was interrupted; its table is printed and its files are written.
        OSError: The files can't be written.
    """
    _check(options)
    session = _Session(options, say)
    engine = _engine(options)
    real = options.on_real_clock
    with report_telemetry(OtlpSwitch(options.otlp, os.environ).configure(), say) as telemetry:
        if telemetry is not None and not real:
            say("telemetry: spans have the times of the real clock, on which --real replays")
        say(f"workload: {session.name}")
        say(f"engine: {session.engine}, {'real clock' if real else 'virtual time'}")
        options.out.mkdir(parents=True, exist_ok=True)
        for file in _FILES:
            (options.out / file).unlink(missing_ok=True)
        try:
            with progress(live or sys.stderr) as update:
                replaying = session.replay(engine, telemetry and telemetry.tracer_provider, update)
                asyncio.run(replaying) if real else run_virtual(replaying)
        except Deadlock as error:
            problem = f"{session.engine} waits for something outside the event loop"
            raise Unknown(f"{problem}, for which virtual time has no end; see --real") from error
        except (KeyboardInterrupt, BackendError) as error:
            session.result.stopped_by = stop_reason(error)
            if session.result.model or isinstance(error, KeyboardInterrupt):
                session.report()
            raise
        session.report()
    return session.result


def _check(options: RunOptions) -> None:
    integer("--limit", options.limit or 0, low=0, unit="requests")
    number("--speed", options.speed, low=MIN_SPEED)
    check_rates(options.cancel_rate, options.drop_rate, ("--cancel-rate", "--drop-rate"))
    if idle := _given(options, _SIMULATED if options.engine else _OF_ENGINE):
        how = "with" if options.engine else "without"
        raise InvalidArgument(f"{', '.join(map(_flag, idle))}: no effect {how} --engine")
    integer("--vocab-size", _VOCAB if options.vocab_size is None else options.vocab_size, low=2)
    if options.synthetic and options.trace is not None:
        raise InvalidArgument(f"--synthetic contradicts --trace: got {options.trace} too")


def _given(options: RunOptions, names: Iterable[str]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _flag(name: str) -> str:
    return "--" if name == "own_args" else f"--{name.replace('_', '-')}"


def _engine(options: RunOptions) -> LLMEngine:
    if options.engine is not None:
        path = options.model_path
        maker = engine_maker(
            options.engine, options.engine_arg or (), options.own_args or (), model_path=path
        )
        if path is not None and options.own_args:
            raise InvalidArgument("--model-path: no effect with arguments after --")
        if path is not None and "model_path" not in maker.arguments:
            raise InvalidArgument(f"--model-path: engine {options.engine} takes no model_path")
        return maker.make()
    try:
        return SimulatedEngine(seed=options.seed, **_given(options, _SIMULATED))
    except InvalidArgument as error:
        name, problem = error.message.split(": ", 1)
        raise InvalidArgument(f"{_flag(name)}: {problem}") from None


class _Session:
    """The workload of one run, its result and its files."""

    def __init__(self, options: RunOptions, say: Callable[[str], None]) -> None:
        self.result = ReplayResult()
        self._options = options
        self._say = say
        self._pipeline = load_pipeline(options.pipeline)
        self._began = time.perf_counter()
        self._trace: Trace | None = None
        limit = options.limit
        if limit is None:
            limit = _REAL_LIMIT if options.on_real_clock else _LIMIT
        path = None if options.synthetic else options.trace or os.environ.get(TRACE_VARIABLE)
        if not path:
            name = "synthetic, in the shape of the Azure conversation trace"
            rows = synthetic(limit, seed=options.seed) if limit else synthetic(seed=options.seed)
        else:
            if Path(path).resolve() in {(options.out / file).resolve() for file in _FILES}:
                raise InvalidArgument(f"--out contradicts the trace: {path} is written to")
            rows = self._trace = read_trace(path, limit=limit or None)
            name = f"{self._trace.format} trace {path}"
        arriving = at_speed(rows, options.speed)
        # A bad file is detected before anything is written; a short workload fits into memory.
        self._workload: Iterable[Request] = chain((next(arriving),), arriving)
        at_what = "" if options.speed == 1 else f", at {options.speed:g} times the speed"
        self.engine = (options.engine or "simulated").rpartition(":")[2]
        if options.pipeline:
            self.engine += f", pipeline {options.pipeline}"
        # The chart's own figures have the number of requests.
        self.result.title = f"{name}{at_what}; {self.engine}"
        if limit or not path:
            self._workload = list(self._workload)
            name += f", {len(self._workload):,} requests"
            if len(self._workload) == limit and options.limit is None:
                name += " (--limit all replays the whole)"
        else:
            name += ", all requests"
        self.name = name + at_what

    async def replay(
        self,
        engine: LLMEngine,
        tracers: TracerProvider | None,
        update: Callable[[ReplayResult], None],
    ) -> None:
        options = self._options
        with ExitStack() as stack:
            tracer = None
            if options.spans:
                from rx_backend.replay.spans import span_lines  # noqa: PLC0415  # only on demand

                clock = loop_clock(asyncio.get_running_loop())
                tracer = stack.enter_context(span_lines(options.out / _SPANS, clock, tracers))
            await replay(
                self._workload,
                engine,
                cancel_rate=options.cancel_rate,
                drop_rate=options.drop_rate,
                seed=options.seed,
                vocab_size=(options.vocab_size or _VOCAB) if options.engine else None,
                pipeline=self._pipeline,
                tracer=tracer,
                on_end=update,
                result=self.result,
            )

    def report(self) -> None:
        """Print the table, write the files and print their paths."""
        took_s, say = time.perf_counter() - self._began, self._say
        if self._options.engine and self.result.model:
            self.result.title += f", model {self.result.model}"
        summary = summarize(self.result)
        say("")
        say(format_table(summary))
        say("")
        if self._trace is not None and self._trace.left_out:
            say(f"left out: {self._trace.left_out:,} rows of the trace without output tokens")
        say(f"replayed in {took_s:.1f} s")
        out = self._options.out
        write_summary(out / _SUMMARY, summary)
        write_requests(out / _REQUESTS, self.result)
        if self._options.plot:
            self._write_plot(out / _PLOT)
        for file in _FILES:
            if (out / file).exists():
                say(f"  {out / file}")

    def _write_plot(self, path: Path) -> None:
        stopped_by = self.result.stopped_by
        title = self.result.title
        if stopped_by is not None:
            title += f"; stopped early: {stopped_by}"
        try:
            from rx_backend.replay.plot import ReplayChart  # noqa: PLC0415  # only on demand

            ReplayChart(self.result, title=title).save(path)
        except ImportError:
            self._say("no plot: it needs matplotlib, pip install 'rx-backend[plot]'")
