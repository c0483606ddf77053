"""
What is needed to write an operator; see :func:`operator` for how that is done.

These are values and types, which ``help()`` does not show:

- ``SCOPE``: the default of a parameter ``scope``, filled in with the request's when a stage starts.
- ``AnyOperator``: anything that a pipeline's list may contain.
- ``Clock``: a monotonic clock, in seconds: ``time.monotonic``, or a virtual loop's ``time``.
- ``SameTypeOperator``: an ``Operator`` whose output type is its input type.
- ``Seconds``: a positive number of seconds, as the type of an operator's argument.
- ``StopTokens``: a token id, or several token ids and sequences of token ids.
- ``Takes``: what an operator takes: ``chunks``, ``items`` or ``anything``.
- ``Transform[A, B]``: an operator, ours or of ``reactivex``, that turns items A into items B.
"""

from operators._chunk import Chunk, Clock, answer_of
from operators._core.arguments import AtLeast, Seconds
from operators._core.assemble import AnyOperator
from operators._core.fusion import FusedRun
from operators._core.operator import (
    SCOPE,
    Operator,
    SameTypeOperator,
    Takes,
    Transform,
    operator,
    same_type,
)
from operators._core.own_copy import own_copy
from operators._core.scope import StreamScope
from operators._core.sources import AsyncObservableSource, ObservableSource
from operators._core.stage import (
    Completed,
    Stage,
    StageResult,
    complete_with,
    detach,
    emit,
    fail_after,
)
from operators._cut import first_tokens
from operators._merge_chunks import merge_chunks
from operators._raw_chunk import has_content
from operators._reader import Reader, ReaderMark
from operators._replay_log import ReplayLog
from operators._stop_on import StopTokens
from operators._text_tail import TextTail, hold_back
from operators.token_times import latency_figures, nearest_rank

__all__ = (
    "SCOPE",
    "AnyOperator",
    "AsyncObservableSource",
    "AtLeast",
    "Chunk",
    "Clock",
    "Completed",
    "FusedRun",
    "ObservableSource",
    "Operator",
    "Reader",
    "ReaderMark",
    "ReplayLog",
    "SameTypeOperator",
    "Seconds",
    "Stage",
    "StageResult",
    "StopTokens",
    "StreamScope",
    "Takes",
    "TextTail",
    "Transform",
    "answer_of",
    "complete_with",
    "detach",
    "emit",
    "fail_after",
    "first_tokens",
    "has_content",
    "hold_back",
    "latency_figures",
    "merge_chunks",
    "nearest_rank",
    "operator",
    "own_copy",
    "same_type",
)
