"""
What can happen to a token stream: small operators, each fusable and each a ``reactivex`` operator.

Every operator works alone in ``source.pipe(...)``; a list of them becomes one pulled stream by
:func:`fuse`, or by giving it to ``rx_backend.EngineAdapter`` as a pipeline.
"""

from operators._chunk import Chunk, Clock
from operators._core.aio_subscription import SubscribesAsync
from operators._core.assemble import AnyOperator, check_operators, fuse
from operators._core.checked import checked
from operators._core.fusion import Enter, FusedRun
from operators._core.loop_scheduler import LoopScheduler
from operators._core.operator import NotAnOperator, Operator, operator, stateless
from operators._core.sources import AsyncObservableSource, ObservableSource, source_of
from operators._core.stage import (
    Awaited,
    Completed,
    Emission,
    Hooks,
    SetupFailed,
    Stage,
    apply,
    bypass,
    emit,
    failing,
    last,
    visit_if,
)
from operators.annotate_errors import annotate_errors
from operators.coalesce import BufferOverflow, CoalesceCounts, coalesce
from operators.deadlines import (
    DeadlineExpired,
    FirstTokenTimeout,
    IdleTimeout,
    TotalTimeout,
    deadlines,
)
from operators.deferred_abort import AbortStep, abort_gate, deferred_abort
from operators.drain_until_first_token import drain_until_first_token
from operators.drains import Drains
from operators.enforce_cancellation import enforce_cancellation
from operators.first_token import first_token
from operators.heartbeat import heartbeat
from operators.itl_window import itl_window, sliding_itl
from operators.limit_tokens import limit_tokens
from operators.map_async import filter_async, map_async
from operators.merge_chunks import merge_chunks
from operators.on_outcome import Outcome, on_outcome
from operators.operator_list import NoSuchOperator, OperatorList
from operators.peek_first import PeekableRun, peek_first
from operators.record_span import record_span
from operators.slo import LatencyQuantiles, SloFigures, SloSnapshot, SloWindows, slo
from operators.stop_on import StopTokens, stop_on
from operators.tap import TapCounts, tap, tap_async
from operators.token_times import LatencyFigures, TokenTimes, latency_figures, nearest_rank
from operators.trace_link import LinkedChunk, trace_link
from operators.until_terminal import until_terminal
from operators.usage import CountedChunk, usage
from operators.validate_chunks import validate_chunks
from operators.validate_contract import ContractViolation, validate_contract

__all__ = (
    "AbortStep",
    "AnyOperator",
    "AsyncObservableSource",
    "Awaited",
    "BufferOverflow",
    "Chunk",
    "Clock",
    "CoalesceCounts",
    "Completed",
    "ContractViolation",
    "CountedChunk",
    "DeadlineExpired",
    "Drains",
    "Emission",
    "Enter",
    "FirstTokenTimeout",
    "FusedRun",
    "Hooks",
    "IdleTimeout",
    "LatencyFigures",
    "LatencyQuantiles",
    "LinkedChunk",
    "LoopScheduler",
    "NoSuchOperator",
    "NotAnOperator",
    "ObservableSource",
    "Operator",
    "OperatorList",
    "Outcome",
    "PeekableRun",
    "SetupFailed",
    "SloFigures",
    "SloSnapshot",
    "SloWindows",
    "Stage",
    "StopTokens",
    "SubscribesAsync",
    "TapCounts",
    "TokenTimes",
    "TotalTimeout",
    "abort_gate",
    "annotate_errors",
    "apply",
    "bypass",
    "check_operators",
    "checked",
    "coalesce",
    "deadlines",
    "deferred_abort",
    "drain_until_first_token",
    "emit",
    "enforce_cancellation",
    "failing",
    "filter_async",
    "first_token",
    "fuse",
    "heartbeat",
    "itl_window",
    "last",
    "latency_figures",
    "limit_tokens",
    "map_async",
    "merge_chunks",
    "nearest_rank",
    "on_outcome",
    "operator",
    "peek_first",
    "record_span",
    "sliding_itl",
    "slo",
    "source_of",
    "stateless",
    "stop_on",
    "tap",
    "tap_async",
    "trace_link",
    "until_terminal",
    "usage",
    "validate_chunks",
    "validate_contract",
    "visit_if",
)
