"""One run from options to files: what `rx-backend run` does."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from msgspec import Struct

from rx_backend.engines import SimulatedEngine
from rx_backend.engines.checks import number, whole
from rx_backend.replay.figures import ReplayResult
from rx_backend.replay.progress import progress
from rx_backend.replay.report import format_table, summarize, write_requests, write_summary
from rx_backend.replay.runner import replay
from rx_backend.replay.workload import Request, at_speed, read_trace, synthetic
from rx_backend.telemetry.switch import OtlpSwitch, telling
from rx_backend.testing import run_virtual

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

__all__ = ("TRACE_VARIABLE", "RunOptions", "find_trace", "run")

TRACE_VARIABLE = "RX_BACKEND_TRACE"
"""Environment variable with the path of the trace that is replayed by default."""

_NEAR_TRACE = Path("..", "shared", "data", "azure_llm_conv_2023.csv")
_LIMIT, _REAL_LIMIT = 4000, 40


class RunOptions(Struct, kw_only=True, frozen=True):
    """What to replay, how, and where to write; the engine's parameters are `SimulatedEngine`'s."""

    trace: Path | None = None
    """The trace; None: the one that `find_trace` finds, else a synthetic workload."""
    synthetic: bool = False
    """Take the synthetic workload in any case."""
    limit: int | None = None
    """Most requests; 0 for all; None for 4,000, or for 40 on the real clock."""
    speed: float = 1.0
    """How many times as fast requests arrive."""
    cancel_rate: float = 0.0
    drop_rate: float = 0.0
    error_rate: float = 0.0
    seed: int = 0
    real: bool = False
    """On the real clock, not in virtual time."""
    out: Path = Path("rx-backend-run")
    """Folder to write to; made when it is missing."""
    plot: bool = True
    spans: bool = True
    otlp: str | None = None
    """Where traces and metrics go: a URL, or `true`; None for what `RX_BACKEND_OTLP` says."""
    max_batch: int = 128
    step_ms: float = 15.0
    step_ms_per_sequence: float = 0.1
    prefill_ms_per_token: float = 0.05
    prefill_chunk_tokens: int = 2048
    kv_tokens: int | None = None


def run(
    options: RunOptions,
    *,
    say: Callable[[str], None] = print,
    live: TextIO | None = None,
) -> ReplayResult:
    """
    Replay a workload, print its table, and write its files.

    Args:
        options: What to do.
        say: Prints a line.
        live: Where the progress is shown; standard error by default.

    Returns:
        The figures.

    Raises:
        InvalidArgument: An option is out of its range, the trace is no trace, or telemetry can't be
            switched on.
        OSError: The files can't be written.
    """
    whole("limit", options.limit or 0, low=0, unit="requests")
    number("speed", options.speed, low=0, above=True)
    engine = SimulatedEngine(
        max_batch=options.max_batch,
        step_ms=options.step_ms,
        step_ms_per_sequence=options.step_ms_per_sequence,
        prefill_ms_per_token=options.prefill_ms_per_token,
        prefill_chunk_tokens=options.prefill_chunk_tokens,
        kv_tokens=options.kv_tokens,
        error_rate=options.error_rate,
        seed=options.seed,
    )
    workload, name = _workload(options)
    with telling(OtlpSwitch(options.otlp, os.environ).configure(), say) as telemetry:
        if telemetry is not None and not options.real:
            say("telemetry: spans have the times of the real clock, on which --real replays")
        tracers = telemetry and telemetry.tracer_provider
        return _run(options, engine, workload, name, tracers, say=say, live=live or sys.stderr)


def find_trace(environ: Mapping[str, str] = os.environ) -> Path | None:
    """
    Return the trace to replay by default, None when there is none.

    It is the one that `RX_BACKEND_TRACE` names, else `../shared/data/azure_llm_conv_2023.csv`
    as seen from the current folder, when it exists.
    """
    named = environ.get(TRACE_VARIABLE)
    if named:
        return Path(named)
    return _NEAR_TRACE if _NEAR_TRACE.is_file() else None


def _run(
    options: RunOptions,
    engine: SimulatedEngine,
    workload: list[Request],
    name: str,
    tracers: TracerProvider | None,
    *,
    say: Callable[[str], None],
    live: TextIO,
) -> ReplayResult:
    say(f"workload: {name}")
    say(f"engine: simulated, {'real clock' if options.real else 'virtual time'}")
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with progress(len(workload), live) as update:
        replaying = _replay(options, workload, engine, tracers, update)
        result = asyncio.run(replaying) if options.real else run_virtual(replaying)
    took = time.perf_counter() - began
    say("")
    say(format_table(summarize(result)))
    say("")
    say(f"replayed in {took:.1f} s")
    for path in _write(options, result, name, say):
        say(f"  {path}")
    return result


def _workload(options: RunOptions) -> tuple[list[Request], str]:
    limit = options.limit
    if limit is None:
        limit = _REAL_LIMIT if options.real else _LIMIT
    trace = None if options.synthetic else options.trace or find_trace()
    if trace is not None:
        rows = read_trace(trace, limit=limit or None)
        name = f"trace {trace}"
    else:
        rows = synthetic(limit, seed=options.seed) if limit else synthetic(seed=options.seed)
        name = "synthetic, in the shape of the Azure conversation trace"
    name += f", {len(rows):,} requests"
    if len(rows) == limit and options.limit is None:
        name += " (--limit all replays the whole)"
    if options.speed != 1:
        name += f", at {options.speed:g} times the speed"
    return at_speed(rows, options.speed), name


async def _replay(
    options: RunOptions,
    workload: list[Request],
    engine: SimulatedEngine,
    tracers: TracerProvider | None,
    update: Callable[[ReplayResult], None],
) -> ReplayResult:
    with ExitStack() as stack:
        tracer = None
        if options.spans:
            from rx_backend.replay.spans import SpanLines  # noqa: PLC0415  # only when asked for

            clock = asyncio.get_running_loop().time
            lines = SpanLines(options.out / "spans.jsonl", clock, tracers)
            tracer = stack.enter_context(lines).tracer
        return await replay(
            workload,
            engine,
            cancel_rate=options.cancel_rate,
            drop_rate=options.drop_rate,
            seed=options.seed,
            tracer=tracer,
            on_end=update,
        )


def _write(
    options: RunOptions, result: ReplayResult, title: str, say: Callable[[str], None]
) -> list[Path]:
    """Write the files; return their paths."""
    paths = [options.out / "summary.json", options.out / "requests.jsonl"]
    write_summary(paths[0], summarize(result))
    write_requests(paths[1], result)
    if options.spans:
        paths.append(options.out / "spans.jsonl")
    if options.plot:
        try:
            from rx_backend.replay.plot import write_plot  # noqa: PLC0415  # only when asked for

            write_plot(options.out / "replay.png", result, title=title)
        except ImportError:
            say("no plot: it needs matplotlib, pip install 'rx-backend[plot]'")
        else:
            paths.append(options.out / "replay.png")
    return paths
