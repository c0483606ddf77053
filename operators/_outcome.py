"""How a stream ended: decided once, where its items are handed out (rows O2, P3 to P6a, P11)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from operators._core.failures import redacted_exc_info
from operators._raw_chunk import field_of, tokens_in
from operators.span_names import DROPPED, ERROR_TERMINAL
from operators.token_times import TokenTimes, worst_reason

__all__ = ("DeliveredItems", "Outcome", "OutcomeTracker", "error_type_of")


class Outcome(NamedTuple):
    """
    How a stream ended: exactly one of a terminal, an error and a drop.

    Attributes:
        finish_reason: Why it ended: the worst of its answers' reasons; None if there was none.
        error: What the stream failed with; None if it did not.
        is_cancelled: Whether the request had been asked to stop, or was dropped.
        times: When its chunks with content arrived, if recorded.
        finish_reasons: The reasons of all answers, by their index.
        delivered_tokens: How many tokens were handed out, if later operators may have removed some;
            None if *times* has the number.
    """

    finish_reason: Any
    error: Exception | None
    is_cancelled: bool
    times: TokenTimes | None = None
    finish_reasons: tuple[Any, ...] = ()
    delivered_tokens: int | None = None

    @property
    def is_dropped(self) -> bool:
        """Whether it ended before its terminal, without an error (rows P5, P6a)."""
        return self.finish_reason is None and self.error is None

    @property
    def is_error(self) -> bool:
        """Whether it failed, by an error or by a terminal that says so (rows P4, P6)."""
        return self.error is not None or bool(getattr(self.finish_reason, "is_error", False))

    @property
    def output_tokens(self) -> int | None:
        """
        How many tokens the consumer received.

        If nothing was counted, the number in the terminals' usage; None without it.
        """
        times = self.times
        if self.delivered_tokens is not None or times is None:
            return self.delivered_tokens
        return times.output_tokens if times.is_counted else times.usage_tokens


def error_type_of(outcome: Outcome) -> str | None:
    """
    Return OpenTelemetry's ``error.type`` of an outcome, of low cardinality; None for a success.

    The class of the error; ``ErrorTerminal`` for a terminal that says so; ``Dropped``.
    """
    if outcome.error is not None:
        return type(outcome.error).__name__
    if outcome.is_dropped:
        return DROPPED
    return ERROR_TERMINAL if outcome.is_error else None


class DeliveredItems:
    """
    What the consumer received, item by item: for streams with operators on annotated items.

    Args:
        parse: Reads a finish reason, which may be in its JSON form here.

    Attributes:
        error: The error of the error item.
        failures: How many error items there were; they may have no error to keep.
        reasons: The finish reasons of the terminals, by the index of their answer.
        tokens: How many token ids there were.
        usage_tokens: The number in the terminals' usage.
        is_known: False if only unreadable items were seen.
    """

    def __init__(self, parse: Callable[[Any], Any]) -> None:
        self._parse = parse
        self._has_chunk = False
        # The answer of each terminal: an operator may hand out a copy as well.
        self._terminals: list[int] = []
        self.error: Exception | None = None
        self.failures = 0
        self.reasons: dict[int, Any] = {}
        self.tokens = 0
        self.usage_tokens = 0
        self.is_known = True

    @property
    def output_tokens(self) -> int:
        """How many tokens there were; without token ids, the number in the usage (row F1)."""
        return self.tokens or self.usage_tokens

    def fail(self, error: Exception | None) -> None:
        """Record a failure that the consumer receives as an item or an exception."""
        self.error = error
        self.failures += 1

    def count_one(self) -> None:
        """Record a chunk of one token that is not a terminal."""
        self.tokens += 1
        self._has_chunk = self.is_known = True

    def record(self, item: Any) -> Any:
        """Record an item, and return it."""
        fields, error = _fields_of(item), getattr(item, "error", None)
        error = error if isinstance(error, Exception) else None
        event = getattr(item, "event", None) if fields is None else fields.get("event")
        if error is not None or event == "error":
            self.fail(error)
        elif (chunk := _chunk_in(cast("object", item))) is not None:
            self._look_at_chunk(chunk)
        elif not self._has_chunk and fields is None and not hasattr(item, "data"):
            self.is_known = False
        return item

    def subtract(self, left: DeliveredItems) -> None:
        """Subtract the items that *left* has recorded: they were not handed out after all."""
        self.tokens -= left.tokens
        for index in left._terminals:
            if index in self._terminals:
                self._terminals.remove(index)
            if index not in self._terminals:
                self.reasons.pop(index, None)
        self.failures -= left.failures
        if not self.failures:
            self.error = None

    def _look_at_chunk(self, chunk: Any) -> None:
        self._has_chunk = self.is_known = True
        self.tokens += tokens_in(chunk)
        reason = field_of(chunk, "finish_reason")
        if reason is None:
            return
        index = field_of(chunk, "index")
        index = index if isinstance(index, int) else 0
        self._terminals.append(index)
        self.reasons.setdefault(index, self._parse(reason))
        used = field_of(field_of(chunk, "completion_usage"), "completion_tokens")
        self.usage_tokens += used if isinstance(used, int) else 0


def _chunk_in(item: Any) -> Any:
    """Return the chunk in an item, or in its JSON form; None without one."""
    chunk = getattr(item, "data", item)
    fields = _fields_of(chunk)
    if fields is not None:
        fields = _fields_of(fields.get("data", fields))
        return None if fields is None or not _CHUNK_FIELDS & fields.keys() else fields
    return chunk if hasattr(chunk, "token_ids") else None


def _fields_of(item: object) -> Mapping[str, Any] | None:
    return cast("Mapping[str, Any]", item) if isinstance(item, Mapping) else None


_CHUNK_FIELDS = frozenset({"token_ids", "finish_reason"})


class OutcomeTracker:
    """
    Decide how one stream ended, and notify its observers, once.

    Args:
        times: The record of the engine's chunks, filled at the end of their phase.

    Attributes:
        failure: What the stream failed with.
        delivered: What the consumer received, if that may differ from the engine's chunks.
    """

    __slots__ = (
        "_left",
        "_observers",
        "delivered",
        "failure",
        "times",
    )

    def __init__(self, times: TokenTimes) -> None:
        self.times = times
        self._observers: tuple[Callable[[Outcome], object], ...] = ()
        self.failure: Exception | None = None
        self.delivered: DeliveredItems | None = None
        self._left: DeliveredItems | None = None

    def subscribe(self, observer: Callable[[Outcome], object]) -> None:
        """Have *observer* called with the outcome when the stream is over."""
        self._observers += (observer,)

    def has_ended(self) -> bool:
        """Return whether the consumer received the last answer's terminal, or an error item."""
        handed = self.delivered
        if handed is not None and handed.is_known:
            return bool(handed.failures) or len(handed.reasons) >= self.times.answers
        return self.failure is not None or len(self.times.finish_reasons) >= self.times.answers

    def mark_undelivered(self, items: Sequence[Any]) -> None:
        """Subtract items that a drop kept from the consumer."""
        left = self._left or DeliveredItems(lambda reason: reason)
        for item in items:
            left.record(item)
        if self.delivered is not None:
            self.delivered.subtract(left)
        else:
            self._left = left

    def end(
        self, *, dropped: bool, is_cancelled: bool = False, dropped_for: Exception | None = None
    ) -> Outcome:
        """
        Decide the outcome, and notify the observers.

        Args:
            dropped: Whether the consumer left before the end of the stream.
            is_cancelled: Whether the request was asked to stop.
            dropped_for: The error that the consumer got instead of the rest from the code that
                dropped the stream.
        """
        outcome = self._decide(dropped_for, dropped=dropped, is_cancelled=is_cancelled)
        observers, self._observers = self._observers, ()
        for observer in observers:
            try:
                observer(outcome)
            except Exception as error:
                # One observer's bug must not keep the outcome from the others.
                _log.error("an observer of outcomes failed", exc_info=redacted_exc_info(error))
        # Its traceback may refer to the consumer's frame, and so back to this tracker.
        self.failure = None
        if self.delivered is not None:
            self.delivered.error = None
        return outcome

    def _decide(
        self, dropped_for: Exception | None, *, dropped: bool, is_cancelled: bool
    ) -> Outcome:
        times, handed, left = self.times, self.delivered, self._left
        reasons, failure, tokens = times.finish_reasons, self.failure, None
        if handed is not None and handed.is_known:
            tokens, has_ended = handed.output_tokens, self.has_ended()
            if has_ended:
                # Item operators may have changed the end.
                reasons, failure = handed.reasons, None
            if handed.failures:
                # An error item may have no error.
                failure = handed.error or self.failure or RuntimeError("an operator made an error")
        else:
            if left is not None:
                tokens = times.output_tokens - left.tokens if times.is_counted else None
                reasons = {index: reasons[index] for index in reasons.keys() - left.reasons.keys()}
            has_ended = handed is None and len(reasons) >= times.answers
            if dropped:
                # The failure has not reached the consumer.
                failure = None
        # After the end that the consumer received, a drop no longer counts (row P6a).
        if dropped and not has_ended:
            is_cancelled = is_cancelled or dropped_for is None
            return Outcome(None, dropped_for, is_cancelled, times, delivered_tokens=tokens)
        if failure is not None:
            return Outcome(None, failure, is_cancelled, times, delivered_tokens=tokens)
        in_order = tuple(map(reasons.__getitem__, sorted(reasons)))
        return Outcome(worst_reason(in_order), None, is_cancelled, times, in_order, tokens)


_log = logging.getLogger(__name__)
