"""The progress of the answers to one request."""

from __future__ import annotations

from collections import Counter

from operators.assembly import OpenAnswers, answer_in, is_terminal, tokens_in
from operators.authoring import has_content
from rx_backend.protocols import (
    CompletionUsage,
    LLMEngineOutput,
    PreprocessedRequest,
    usage,
)

__all__ = ("AnswerProgress",)


class AnswerProgress:
    """
    The tokens of each answer of a request so far, and which answers have ended.

    Args:
        request: The request.

    Attributes:
        answers: The answers, and which have their terminal.
        output_tokens: The tokens of each answer that has started. A chunk with text or other parts
            instead of token ids counts as one, as far as the engine knows.
    """

    __slots__ = ("_count", "_prompt_tokens", "answers", "output_tokens")

    def __init__(self, request: PreprocessedRequest) -> None:
        self._prompt_tokens = len(request.token_ids)
        self._count = request.sampling_options.n or 1
        self.answers = OpenAnswers(self._count)
        self.output_tokens: Counter[int] = Counter()

    def add(self, chunk: object) -> None:
        """Count a chunk that is yielded, in any form."""
        answer = answer_in(chunk)
        self.output_tokens[answer] += tokens_in(chunk) or has_content(chunk)
        if is_terminal(chunk):
            self.answers.end(answer)

    def is_open(self, answer: int) -> bool:
        """Return whether *answer* was requested and has no terminal yet."""
        return 0 <= answer < self._count and answer not in self.answers.ended

    @property
    def open(self) -> list[int]:
        """The answers without a terminal in order, including those that have not started."""
        missing = [answer for answer in range(self._count) if answer not in self.output_tokens]
        answers = [*self.output_tokens, *missing[: max(0, self._count - len(self.output_tokens))]]
        return sorted(set(answers) - self.answers.ended)

    def index(self, answer: int) -> int | None:
        """Return the ``index`` of a chunk of *answer*; None if it is the only one."""
        return answer if answer or self._count > 1 else None

    def usage(self, answer: int) -> CompletionUsage:
        """Return the usage of *answer* so far."""
        return usage(self._prompt_tokens, self.output_tokens[answer])

    def cancelled(self) -> list[LLMEngineOutput]:
        """Return a terminal for each open answer, with its usage so far (row E4)."""
        return [self._cancelled(answer) for answer in self.open]

    def _cancelled(self, answer: int) -> LLMEngineOutput:
        terminal = LLMEngineOutput.cancelled()
        terminal.index = self.index(answer)
        return terminal.with_usage(self.usage(answer))
