"""How far the answers to one request have come."""

from __future__ import annotations

from collections import Counter

from operators.assembly import OpenAnswers, answer_in, is_terminal, tokens_in
from rx_backend.protocols import (
    CompletionUsage,
    LLMEngineOutput,
    PreprocessedRequest,
    usage,
)

__all__ = ("AnswerProgress",)


class AnswerProgress:
    """
    The tokens of each answer of a request so far, and which have ended.

    Args:
        request: The request.

    Attributes:
        answers: Which answers have their terminal.
        made: The tokens of each answer that has begun.
    """

    __slots__ = ("_count", "_prompt_tokens", "answers", "made")

    def __init__(self, request: PreprocessedRequest) -> None:
        self._prompt_tokens = len(request.token_ids)
        self._count = request.sampling_options.n or 1
        self.answers = OpenAnswers(self._count)
        self.made: Counter[int] = Counter()

    def add(self, chunk: object) -> None:
        """Note a chunk that is handed out, whatever its form."""
        answer = answer_in(chunk)
        self.made[answer] += tokens_in(chunk)
        if is_terminal(chunk):
            self.answers.end(answer)

    def is_open(self, answer: int) -> bool:
        """Return whether *answer* is one that was asked for, and lacks its terminal."""
        return 0 <= answer < self._count and answer not in self.answers.ended

    @property
    def open(self) -> list[int]:
        """The answers without a terminal in order, those that have not begun among them."""
        missing = [answer for answer in range(self._count) if answer not in self.made]
        answers = [*self.made, *missing[: max(0, self._count - len(self.made))]]
        return sorted(set(answers) - self.answers.ended)

    def index(self, answer: int) -> int | None:
        """Return the ``index`` of a chunk of *answer*; None if it is the only one."""
        return answer if answer or self._count > 1 else None

    def usage(self, answer: int) -> CompletionUsage:
        """Return what *answer* cost so far."""
        return usage(self._prompt_tokens, self.made[answer])

    def cancelled(self) -> list[LLMEngineOutput]:
        """Return the terminal of each answer that is open, with what it cost so far (row E4)."""
        return [self._cancelled(answer) for answer in self.open]

    def _cancelled(self, answer: int) -> LLMEngineOutput:
        terminal = LLMEngineOutput.cancelled()
        terminal.index = self.index(answer)
        return terminal.with_usage(self.usage(answer))
