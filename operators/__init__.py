"""
What can happen to a token stream: small operators, each fusable and each a ``reactivex`` operator.

Every operator works alone in ``source.pipe(...)``; a list of them becomes one pulled stream by
:func:`fuse`, and a :class:`Pipeline` of them is what ``rx_backend.EngineAdapter`` takes. What is
needed to write one is in :mod:`operators.authoring`.
"""

from operators._abort_step import AbortStep
from operators._annotate_errors import annotate_errors
from operators._coalesce import BufferOverflow, CoalesceCounts, coalesce
from operators._core.assemble import fuse
from operators._core.loop_scheduler import LoopScheduler
from operators._core.operator import NotAnOperator
from operators._deadlines import (
    DeadlineExpired,
    FirstTokenTimeout,
    IdleTimeout,
    TotalTimeout,
    deadlines,
)
from operators._deferred_abort import abort_gate, deferred_abort
from operators._detokenize import detokenize
from operators._drain_until_first_token import drain_until_first_token
from operators._enforce_cancellation import enforce_cancellation
from operators._first_token import first_token
from operators._heartbeat import heartbeat
from operators._itl_window import itl_window, sliding_itl
from operators._limit_tokens import limit_tokens
from operators._map_async import map_async
from operators._on_outcome import on_outcome
from operators._outcome import Outcome
from operators._peek_first import peek_first
from operators._pipeline import NoSuchOperator, Pipeline
from operators._record_span import record_span
from operators._replay_log import PositionDropped, PositionUnknown
from operators._share_replay import share_replay
from operators._shared_source import SourceClosed
from operators._shared_stream import SharedStream
from operators._slo import LatencyQuantiles, SloFigures, SloSnapshot, SloWindows, slo
from operators._stop_on import stop_on
from operators._stop_on_text import stop_on_text
from operators._tap import TapCounts, tap, tap_async
from operators._trace_link import trace_link
from operators._until_terminal import until_terminal
from operators._usage import usage
from operators._validate_chunks import validate_chunks
from operators._validate_contract import ContractViolation, validate_contract
from operators.drains import Drains
from operators.token_times import LatencyFigures, TokenTimes

__all__ = (
    "AbortStep",
    "BufferOverflow",
    "CoalesceCounts",
    "ContractViolation",
    "DeadlineExpired",
    "Drains",
    "FirstTokenTimeout",
    "IdleTimeout",
    "LatencyFigures",
    "LatencyQuantiles",
    "LoopScheduler",
    "NoSuchOperator",
    "NotAnOperator",
    "Outcome",
    "Pipeline",
    "PositionDropped",
    "PositionUnknown",
    "SharedStream",
    "SloFigures",
    "SloSnapshot",
    "SloWindows",
    "SourceClosed",
    "TapCounts",
    "TokenTimes",
    "TotalTimeout",
    "abort_gate",
    "annotate_errors",
    "coalesce",
    "deadlines",
    "deferred_abort",
    "detokenize",
    "drain_until_first_token",
    "enforce_cancellation",
    "first_token",
    "fuse",
    "heartbeat",
    "itl_window",
    "limit_tokens",
    "map_async",
    "on_outcome",
    "peek_first",
    "record_span",
    "share_replay",
    "sliding_itl",
    "slo",
    "stop_on",
    "stop_on_text",
    "tap",
    "tap_async",
    "trace_link",
    "until_terminal",
    "usage",
    "validate_chunks",
    "validate_contract",
)
