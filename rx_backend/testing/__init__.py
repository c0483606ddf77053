"""
Tools for tests of streams, operators and engines.

- ``run_virtual`` and ``VirtualTimeLoop``: asyncio in virtual time; ``LoopScheduler`` for Rx timers.
- ``check_engine`` and ``run_conformance``: report the rules of the engine contract that an engine
  breaks; ``engine_conformance_tests``: the same as ``pytest`` tests.
- ``assert_marbles`` and ``Marbles``: test operators with marble lines.
"""

from operators import LoopScheduler
from rx_backend.testing.conformance import (
    ConformanceOptions,
    EngineFactory,
    check_engine,
    engine_conformance_tests,
    run_conformance,
)
from rx_backend.testing.conformance_report import (
    ConformanceError,
    ConformanceReport,
    Rule,
    Violation,
)
from rx_backend.testing.deadlock import Deadlock
from rx_backend.testing.engine_loading import load_engine_factory
from rx_backend.testing.marble_line import (
    MarbleError,
    MarbleEvent,
    MarbleLine,
    align_marbles,
    parse_marbles,
    render_marbles,
)
from rx_backend.testing.marble_record import MarbleResult
from rx_backend.testing.marble_source import MarbleSource
from rx_backend.testing.marbles import (
    MarbleFailure,
    MarbleMismatch,
    Marbles,
    assert_marbles,
)
from rx_backend.testing.virtual_run import run_virtual
from rx_backend.testing.virtual_time import VirtualTimeLoop

__all__ = (
    "ConformanceError",
    "ConformanceOptions",
    "ConformanceReport",
    "Deadlock",
    "EngineFactory",
    "LoopScheduler",
    "MarbleError",
    "MarbleEvent",
    "MarbleFailure",
    "MarbleLine",
    "MarbleMismatch",
    "MarbleResult",
    "MarbleSource",
    "Marbles",
    "Rule",
    "Violation",
    "VirtualTimeLoop",
    "align_marbles",
    "assert_marbles",
    "check_engine",
    "engine_conformance_tests",
    "load_engine_factory",
    "parse_marbles",
    "render_marbles",
    "run_conformance",
    "run_virtual",
)
