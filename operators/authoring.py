"""What is needed to write an operator; see :func:`operator` for how that is done."""

from operators._chunk import Chunk, Clock, answer_of, has_content
from operators._coalesce import Merge
from operators._core.arguments import AtLeast, Seconds
from operators._core.assemble import AnyOperator
from operators._core.fusion import FusedRun
from operators._core.item_types import SameTypeOperator, Transform, same_type
from operators._core.operator import SCOPE, Operator, Takes, operator
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
from operators._merge_chunks import merge_chunks
from operators._own_copy import own_copy
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
    "Merge",
    "ObservableSource",
    "Operator",
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
    "has_content",
    "hold_back",
    "latency_figures",
    "merge_chunks",
    "nearest_rank",
    "operator",
    "own_copy",
    "same_type",
)
