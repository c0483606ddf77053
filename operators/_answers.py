"""Which of a request's answers have ended."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from operators._core.arguments import AtLeast
from operators._core.scope import StreamScope

__all__ = ("Answers", "MinTokens", "OpenAnswers", "answers_of")

Answers: TypeAlias = Annotated[int, AtLeast(1)]
"""How many answers a request has."""

MinTokens: TypeAlias = Annotated[int, AtLeast(0, "tokens")]
"""How many tokens an answer has before it may be stopped."""


def answers_of(answers: int | None, scope: StreamScope | None) -> int:
    """Return the option *answers* of an operator: by default that of the scope, or 1."""
    if answers is not None:
        return answers
    return 1 if scope is None else scope.answers


class OpenAnswers:
    """
    The answers of one stream, each of which ends separately (row E3).

    Attributes:
        ended: Those that have ended; further chunks for them are to be dropped.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self.ended: set[int] = set()
        self._has_cut = False

    @property
    def are_over(self) -> bool:
        """Whether all have ended."""
        return len(self.ended) >= self._count

    @property
    def left(self) -> list[int]:
        """Those that have not ended; for unusual indexes of the engine, only as many."""
        left = [answer for answer in range(self._count) if answer not in self.ended]
        return left[: max(0, self._count - len(self.ended))]

    def end(self, answer: int, *, cut: bool = False) -> bool:
        """
        Record that *answer* has ended: by the engine, or *cut* by the operator.

        Returns:
            Whether to end the stream: all answers have ended, and the operator has cut one, so that
            the engine may never end by itself.
        """
        self.ended.add(answer)
        self._has_cut = self._has_cut or cut
        return self._has_cut and self.are_over
