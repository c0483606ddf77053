"""
What can happen to a token stream: small operators, each fusable and each a ``reactivex`` operator.

Every operator works alone in ``source.pipe(...)``; a list of them becomes one pulled stream by
:func:`fuse`, or by giving it to ``rx_backend.EngineAdapter`` as a pipeline.
"""

from operators._assemble import AnyOperator, check_operators, fuse
from operators._chunk import Chunk, Clock
from operators._fusion import Enter, FusedRun
from operators._loop_scheduler import LoopScheduler
from operators._operator import NotAnOperator, Operator, operator, stateless
from operators._stage import (
    Completed,
    Emission,
    Hooks,
    SetupFailed,
    Stage,
    apply,
    bypass,
    emit,
    last,
    visit_if,
)
from operators.annotate_errors import annotate_errors
from operators.deferred_abort import abort_gate, deferred_abort
from operators.first_token import first_token
from operators.itl_window import itl_window, sliding_itl
from operators.record_span import record_span
from operators.token_times import LatencyFigures, TokenTimes, latency_figures, nearest_rank
from operators.trace_link import LinkedChunk, trace_link
from operators.until_terminal import until_terminal
from operators.validate_chunks import validate_chunks
from operators.validate_contract import ContractViolation, validate_contract

__all__ = (
    "AnyOperator",
    "Chunk",
    "Clock",
    "Completed",
    "ContractViolation",
    "Emission",
    "Enter",
    "FusedRun",
    "Hooks",
    "LatencyFigures",
    "LinkedChunk",
    "LoopScheduler",
    "NotAnOperator",
    "Operator",
    "SetupFailed",
    "Stage",
    "TokenTimes",
    "abort_gate",
    "annotate_errors",
    "apply",
    "bypass",
    "check_operators",
    "deferred_abort",
    "emit",
    "first_token",
    "fuse",
    "itl_window",
    "last",
    "latency_figures",
    "nearest_rank",
    "operator",
    "record_span",
    "sliding_itl",
    "stateless",
    "trace_link",
    "until_terminal",
    "validate_chunks",
    "validate_contract",
    "visit_if",
)
