"""How far the answers to one request have come."""

from __future__ import annotations

from collections import Counter

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

    __slots__ = ("_count", "_ended", "_indexes", "_made", "_prompt_tokens", "tokens")

    def __init__(self, request: PreprocessedRequest, answers: int) -> None:
        self._prompt_tokens = len(request.token_ids)
        self._count = answers
        self._made: Counter[int] = Counter()
        self._indexes: dict[int, int | None] = {}
        self._ended: set[int] = set()
        self.tokens = 0

    def add(self, chunk: LLMEngineOutput) -> None:
        """Note a chunk that is handed out."""
        answer, tokens = chunk.index or 0, len(chunk.token_ids)
        self.tokens += tokens
        self._made[answer] += tokens
        self._indexes[answer] = chunk.index
        if chunk.finish_reason is not None:
            self._ended.add(answer)

    @property
    def open(self) -> list[int]:
        """The answers without a terminal, those that have not begun among them."""
        missing = [answer for answer in range(self._count) if answer not in self._indexes]
        begun = len(self._indexes)
        answers = [*self._indexes, *missing[: max(0, self._count - begun)]]
        return [answer for answer in answers if answer not in self._ended]

    def cancelled(self) -> list[LLMEngineOutput]:
        """Return the terminal of each answer that is open, with what it cost so far (row E4)."""
        return [self._cancelled(answer) for answer in self.open]

    def _cancelled(self, answer: int) -> LLMEngineOutput:
        terminal = LLMEngineOutput.cancelled()
        terminal.index = self._indexes.get(answer, answer if self._count > 1 else None)
        return terminal.with_usage(usage(self._prompt_tokens, self._made[answer]))
