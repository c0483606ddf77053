"""How far the answers to one request have come."""

from __future__ import annotations

from collections import Counter

from operators.assembly import answer_in, is_terminal, tokens_in
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest, usage

__all__ = ("AnswerProgress",)


class AnswerProgress:
    """
    The tokens of each answer so far, and which have ended.

    Args:
        request: The request.
        answers: How many answers it has.

    Attributes:
        tokens: Those of all answers together.
    """

    __slots__ = ("_begun", "_count", "_ended", "_made", "_prompt_tokens", "tokens")

    def __init__(self, request: PreprocessedRequest, answers: int) -> None:
        self._prompt_tokens = len(request.token_ids)
        self._count = answers
        self._made: Counter[int] = Counter()
        # A set would forget the order.
        self._begun: dict[int, None] = {}
        self._ended: set[int] = set()
        self.tokens = 0

    def add(self, chunk: object) -> None:
        """Note a chunk that is handed out, whatever its form."""
        answer, tokens = answer_in(chunk), tokens_in(chunk)
        self.tokens += tokens
        self._made[answer] += tokens
        self._begun[answer] = None
        if is_terminal(chunk):
            self._ended.add(answer)

    @property
    def open(self) -> list[int]:
        """The answers without a terminal, those that have not begun among them."""
        missing = [answer for answer in range(self._count) if answer not in self._begun]
        answers = [*self._begun, *missing[: max(0, self._count - len(self._begun))]]
        return [answer for answer in answers if answer not in self._ended]

    def cancelled(self) -> list[LLMEngineOutput]:
        """Return the terminal of each answer that is open, with what it cost so far (row E4)."""
        return [self._cancelled(answer) for answer in self.open]

    def _cancelled(self, answer: int) -> LLMEngineOutput:
        terminal = LLMEngineOutput.cancelled()
        terminal.index = answer if answer or self._count > 1 else None
        return terminal.with_usage(usage(self._prompt_tokens, self._made[answer]))
