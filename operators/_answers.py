"""Which of a request's answers have ended."""

from __future__ import annotations

__all__ = ("OpenAnswers", "check_answers")


def check_answers(operator: str, answers: object) -> None:
    """
    Check the option *answers* of an operator.

    Raises:
        ValueError: It is no number of at least 1.
    """
    if type(answers) is not int or answers < 1:
        raise ValueError(f"{operator}: answers: expected at least 1, got {answers!r}")


class OpenAnswers:
    """
    The answers of one stream, for an operator that may end one of them early (row E3).

    Args:
        count: How many answers the request has.
    """

    __slots__ = ("_count", "_ended", "_has_cut")

    def __init__(self, count: int) -> None:
        self._count = count
        self._ended: set[int] = set()
        self._has_cut = False

    def has_ended(self, answer: int) -> bool:
        """Whether *answer* has ended: whatever the engine still yields for it is to be dropped."""
        return answer in self._ended

    def end(self, answer: int, *, cut: bool = False) -> bool:
        """
        Note that *answer* has ended.

        Args:
            answer: Its index.
            cut: The operator ended it, not the engine.

        Returns:
            Whether the stream is to end: the operator has cut an answer, so that the engine may
            never come to its end, and all answers have ended.
        """
        self._ended.add(answer)
        self._has_cut = self._has_cut or cut
        return self._has_cut and len(self._ended) >= self._count
