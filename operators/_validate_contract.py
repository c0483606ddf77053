"""Report a stream that breaks the engine contract."""

from __future__ import annotations

from typing import Any

from operators._answers import Answers
from operators._chunk import Chunk, answer_of
from operators._core.operator import callbacks, same_type
from operators._core.stage import Completed, Stage, emit

__all__ = ("ContractViolation", "validate_contract")


class ContractViolation(ValueError):
    """Rule E3 was broken: an answer has no terminal, continues after it, or was not asked for."""


@same_type
@callbacks(takes="chunks")
def validate_contract(*, answers: Answers = 1) -> Stage[Any, Any]:
    """
    Fail a stream in which an answer has no terminal, continues after it, or was not asked for.

    Answers are distinguished by ``index``, 0 by default (rows E3, S8). For tests and engine
    development; after ``until_terminal``, in a production pipeline, it would only see a missing
    terminal. ``T`` is a terminal::

        source  ---a-T-b-|
        result  ---a-T-#

    and a stream without a terminal::

        source  ---a-|
        result  ---a-#

    Args:
        answers: How many answers the request has, at least 1.

    Raises:
        ValueError: *answers* is below 1; when the operator is made.

    Phase: chunks; before ``until_terminal``, in tests and engine development.
    Errors: source errors pass unchanged; they are a valid end, like a terminal.
    On dispose: nothing; a dropped stream breaks no rule.

    >>> import reactivex
    >>> from rx_backend import LLMEngineOutput
    >>> chunks = reactivex.of(LLMEngineOutput.stop(), LLMEngineOutput.token(7))
    >>> _ = chunks.pipe(validate_contract()).subscribe(on_error=print)
    item after the terminal: token_ids=[7], finish_reason=None
    """
    ended: set[int] = set()
    out: Any = emit()
    while True:
        try:
            chunk = yield out
        except Completed:
            if len(ended) < answers:
                missing = f" of {answers - len(ended)} of {answers} answers" if answers > 1 else ""
                raise ContractViolation(f"the stream ended without a terminal{missing}") from None
            raise
        answer = answer_of(chunk)
        if answer >= answers:
            raise _violation(f"item with index {answer}, expected one below {answers}", chunk)
        if answer in ended:
            which = f" of answer {answer}" if answers > 1 else ""
            raise _violation(f"item after the terminal{which}", chunk)
        if chunk.finish_reason is not None:
            ended.add(answer)
        out = chunk


def _violation(problem: str, chunk: Chunk) -> ContractViolation:
    shown = f"token_ids={list(chunk.token_ids)}, finish_reason={chunk.finish_reason}"
    return ContractViolation(f"{problem}: {shown}")
