"""End the stream with its terminal chunk."""

from __future__ import annotations

from typing import Any

from operators._answers import Answers, OpenAnswers, answers_of
from operators._chunk import IS_TERMINAL, Chunk, answer_of
from operators._core.operator import callbacks, same_type
from operators._core.scope import StreamScope
from operators._core.stage import Callbacks, StageResult, complete_with, emit

__all__ = ("until_terminal",)


@same_type
@callbacks(takes="chunks")
def until_terminal(
    answers: Answers | None = None, *, scope: StreamScope | None = None
) -> Callbacks[Any, Any]:
    """
    End the stream with the terminal of its last answer (rows E3, S2).

    A terminal is a chunk whose ``finish_reason`` is set. It is handed out, but nothing after it
    (row S8)::

        source  ---a-b-T-c-|
        result  ---a-b-(T|)

    With several answers, distinguished by ``index``, each has its own terminal. Chunks of an answer
    after its terminal are dropped, and the last terminal ends the stream. An error terminal ends
    only its answer, a failure of the source ends all.

    Args:
        answers: How many answers the request has, at least 1; by default from the scope, else 1.
        scope: The scope of the stream; filled in by a pipeline.

    Raises:
        ValueError: *answers* is below 1; when the operator is made.

    Phase: chunks; part of the standard pipeline, after ``validate_chunks``.
    Errors: source errors pass unchanged.
    On dispose: nothing.

    >>> import reactivex
    >>> from rx_backend import LLMEngineOutput
    >>> chunks = reactivex.of(LLMEngineOutput.token(7), LLMEngineOutput.stop(), LLMEngineOutput())
    >>> _ = chunks.pipe(until_terminal()).subscribe(lambda chunk: print(chunk.finish_reason))
    None
    stop
    """
    answers = answers_of(answers, scope)
    if answers == 1:
        return _ONE_ANSWER
    open_answers = OpenAnswers(answers)
    ended = open_answers.ended

    def look(chunk: Chunk) -> Chunk | StageResult:
        answer = answer_of(chunk)
        if answer in ended:
            return emit()
        if chunk.finish_reason is None:
            return chunk
        open_answers.end(answer)
        return complete_with(chunk) if open_answers.are_over else chunk

    return Callbacks(look, only=f"ended or {IS_TERMINAL}", names={"ended": ended})


# Stateless, so all streams share it.
_ONE_ANSWER: Callbacks[Any, Any] = Callbacks(complete_with, only=IS_TERMINAL)
