"""A table that finds token sequences in a stream, reading each token once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from functools import lru_cache

__all__ = ("StopTable", "stop_table")

Sequences = frozenset[tuple[int, ...]]


class StopTable:
    """
    An Aho-Corasick automaton over token ids.

    A state is a number, which stands for the longest suffix of the input that is a prefix of a
    sequence. State 0 is the start: no sequence has begun.

    Args:
        sequences: The sequences to find; none is empty.

    Attributes:
        starts: The tokens that a sequence begins with.
        begun: For each state, how many of the last tokens may belong to an incomplete sequence.
        found: For each state, the length of the longest sequence that ends there, or 0.
    """

    def __init__(self, sequences: Iterable[tuple[int, ...]]) -> None:
        self._ways: list[dict[int, int]] = [{}]
        self._shorter = [0]
        self.begun = [0]
        self.found = [0]
        for sequence in sequences:
            self._add(sequence)
        self.starts = frozenset(self._ways[0])
        self._link()

    def read(
        self, state: int, token_ids: Iterable[int], *, ignored: int = 0
    ) -> tuple[int, int, int]:
        """
        Continue from *state* over *token_ids*, up to the first token that a sequence ends with.

        Args:
            state: The state after what was read before.
            token_ids: What to read.
            ignored: Ignore sequences that end within this many tokens.

        Returns:
            The state after that, how many tokens were read, and the length of the sequence that
            ends there, or 0.
        """
        ways, shorter, found = self._ways, self._shorter, self.found
        count = 0
        for token_id in token_ids:
            count += 1
            while state and token_id not in ways[state]:
                state = shorter[state]
            state = ways[state].get(token_id, 0)
            if found[state] and count > ignored:
                return state, count, found[state]
        return state, count, 0

    def _add(self, sequence: tuple[int, ...]) -> None:
        state = 0
        for token_id in sequence:
            ways = self._ways[state]
            if token_id not in ways:
                ways[token_id] = len(self._ways)
                self._ways.append({})
                self._shorter.append(0)
                self.begun.append(self.begun[state] + 1)
                self.found.append(0)
            state = ways[token_id]
        self.found[state] = len(sequence)

    def _link(self) -> None:
        """For each state, breadth first, find the next shorter suffix that is also a prefix."""
        waiting = deque(self._ways[0].values())
        while waiting:
            state = waiting.popleft()
            if not self._ways[state]:
                self.begun[state] = self.begun[self._shorter[state]]
            for token_id, longer in self._ways[state].items():
                end, _, _ = self.read(self._shorter[state], (token_id,))
                self._shorter[longer] = end
                self.found[longer] = self.found[longer] or self.found[end]
                waiting.append(longer)


@lru_cache(maxsize=128)
def stop_table(sequences: Sequences) -> StopTable:
    """Return the table of *sequences*, cached: a worker's requests share many."""
    return StopTable(sequences)
