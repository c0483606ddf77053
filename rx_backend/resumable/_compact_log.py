"""The items of one answer, held compactly."""

from __future__ import annotations

import copy
import pickle
from array import array
from collections.abc import Callable
from typing import Final, cast

from operators.authoring import own_copy
from rx_backend.errors import KINDS, BackendError
from rx_backend.protocols import Annotated, CompletionUsage, LLMEngineOutput
from rx_backend.resumable._errors import check_item
from rx_backend.resumable._sizes import size_of

__all__ = ("CompactLog",)

Item = Annotated[LLMEngineOutput]

_OBJECT: Final = -1
# The shapes of items held in the buffers, and their number.
_IDS, _TEXT, _TEXT_BY_TOKEN, _SHAPES = range(4)
# Per item: its shape, and the ends of its tokens and its text.
_BYTES_PER_ITEM: Final = 3 * 8
_BYTES_PER_TOKEN: Final = 4


class CompactLog:
    """
    The items of one answer, readable from any position: a ``ReplayLog``.

    An item with only token ids, text and index takes 24 bytes, plus 4 per token and its text in
    UTF-8; one of a single token may also have that token's text in ``tokens``. Consecutive items of
    the same shape and answer come out as one. Any other item (a terminal, log probabilities, the
    first chunk with its trace link, an error item) is held as a copy, and comes out separately.

    An error item is held without the traceback of its error, which would keep the engine's frames
    alive; the chain of causes is kept.

    Args:
        max_bytes: How much to hold. Delivered items are dropped, oldest first, an eighth at a time;
            undelivered ones are never dropped.
        on_drop: Called when items were dropped.

    Attributes:
        first: The oldest position to read from.
        head: How many items there have been.
        delivered: The fastest reader's position at the last :meth:`make_room`.
        begun: For each answer, the position after its first visible item: one with text, log
            probabilities or a finish reason.
        usages: The usage of each terminal, with the position after it; kept when the terminal is
            dropped.
        held_bytes: The size of what is held: the bytes above, and for objects ``sys.getsizeof`` of
            all their parts. Spare buffer capacity, at most an eighth, and about a kilobyte for the
            log itself are not counted.

    >>> log = CompactLog(1_000)
    >>> for chunk in (LLMEngineOutput([7], text="a"), LLMEngineOutput([8, 9], text="b")):
    ...     log.append(Annotated(chunk))
    >>> log.read(0)
    (Annotated(data=LLMEngineOutput(token_ids=[7, 8, 9], text='ab')), 2)
    >>> log.read(1)
    (Annotated(data=LLMEngineOutput(token_ids=[8, 9], text='b')), 2)
    """

    __slots__ = (
        "_kinds",
        "_last",
        "_max_bytes",
        "_objects",
        "_on_drop",
        "_text",
        "_text_ends",
        "_token_ends",
        "_tokens",
        "begun",
        "delivered",
        "first",
        "head",
        "held_bytes",
        "usages",
    )

    def __init__(self, max_bytes: int, on_drop: Callable[[], object] | None = None) -> None:
        self.first = 0
        self.head = 0
        self.delivered = 0
        self._max_bytes = max_bytes
        self._on_drop = on_drop
        # For each item from `first` on. Ends count from the answer's beginning, and include the end
        # before the first item.
        self._kinds = array("q")
        self._token_ends = array("Q", [0])
        self._text_ends = array("Q", [0])
        self._tokens = array("I")
        self._text = bytearray()
        self._objects: dict[int, Item] = {}
        # The newest item, which a reader that keeps up gets at less cost than from the buffers.
        self._last: tuple[list[int], str | None, int | None, bool] | None = None
        self.begun: dict[int, int] = {}
        self.usages: list[tuple[int, CompletionUsage]] = []
        self.held_bytes = 0

    def append(self, item: Item) -> None:
        """
        Hold one more item.

        Raises:
            InvalidArgument: It is not an ``Annotated``.
        """
        if not self._append_plain(item):
            self._append_object(item)
        self._token_ends.append(self._token_ends[0] + len(self._tokens))
        self._text_ends.append(self._text_ends[0] + len(self._text))
        self.head += 1
        if isinstance(item.data, LLMEngineOutput):
            self._note(item.data)

    def _note(self, chunk: LLMEngineOutput) -> None:
        """Record what is needed even after the chunk itself has been dropped."""
        if chunk.text or chunk.log_probs or chunk.finish_reason is not None:
            self.begun.setdefault(chunk.index or 0, self.head)
        if chunk.finish_reason is not None and chunk.completion_usage is not None:
            self.usages.append((self.head, chunk.completion_usage))

    def _append_plain(self, item: Item) -> bool:
        """Hold an item in the buffers, if it has such a shape; return whether it has."""
        chunk = getattr(item, "data", None)
        if type(chunk) is not LLMEngineOutput:
            return False
        ids, text, index = chunk.token_ids, chunk.text, chunk.index
        # As made by `detokenize`: the text of the chunk is that of its token.
        by_token = chunk.tokens is not None and text is not None and len(ids) == 1
        if item != _plain(ids, text, index, by_token=by_token):
            return False
        try:
            if index is not None and index < 0:
                return False
            tokens = array("I", ids)
            data = b"" if text is None else text.encode("utf-8", "surrogatepass")
            shape = _TEXT_BY_TOKEN if by_token else _IDS if text is None else _TEXT
            self._kinds.append(shape + (0 if index is None else _SHAPES * (index + 1)))
        except (TypeError, AttributeError, OverflowError):
            # Of a type or size without a wire form.
            return False
        self._tokens += tokens
        self._text += data
        self._last = (list(ids), text, index, by_token)
        self.held_bytes += _BYTES_PER_ITEM + _BYTES_PER_TOKEN * len(tokens) + len(data)
        return True

    def _append_object(self, item: Item) -> None:
        check_item(item)
        self._last = None
        held = _own(item)
        if held.error is not None:
            held.error = _without_frames(held.error)
        self._kinds.append(_OBJECT)
        self._objects[self.head] = held
        self.held_bytes += _BYTES_PER_ITEM + size_of(held)

    def read(self, position: int) -> tuple[Item, int]:
        """Return the items from *position* on, merged into a new one, and the position after it."""
        if position == self.head - 1 and self._last is not None:
            ids, text, index, by_token = self._last
            return _plain(ids[:], text, index, by_token=by_token), self.head
        start = position - self.first
        kinds = self._kinds
        kind = kinds[start]
        if kind == _OBJECT:
            return _own(self._objects[position]), position + 1
        end, count = start + 1, len(kinds)
        while end < count and kinds[end] == kind:
            end += 1
        index, shape = divmod(kind, _SHAPES)
        ends = self._token_ends
        chunk = LLMEngineOutput(self._tokens[ends[start] - ends[0] : ends[end] - ends[0]].tolist())
        if shape != _IDS:
            chunk.text = self._text_from(start, end)
        if shape == _TEXT_BY_TOKEN:
            chunk.tokens = [self._text_from(place, place + 1) for place in range(start, end)]
        if index:
            chunk.index = index - 1
        return Annotated(chunk), self.first + end

    def _text_from(self, start: int, end: int) -> str:
        ends = self._text_ends
        text = self._text[ends[start] - ends[0] : ends[end] - ends[0]]
        return text.decode("utf-8", "surrogatepass")

    def make_room(self, delivered: int) -> bool:
        """
        Return whether another item may come, after dropping delivered items if needed.

        Args:
            delivered: The position that the fastest reader has reached.
        """
        self.delivered = delivered
        if self.held_bytes < self._max_bytes:
            return True
        wanted = self._max_bytes - self._max_bytes // 8
        left, count = self.held_bytes, 0
        while left >= wanted and count < delivered - self.first:
            left -= self._size_at(count)
            count += 1
        if count:
            self._drop(count, left)
        return left < self._max_bytes

    def _size_at(self, place: int) -> int:
        tokens, text = self._token_ends, self._text_ends
        held = self._objects.get(self.first + place)
        return (
            _BYTES_PER_ITEM
            + (tokens[place + 1] - tokens[place]) * _BYTES_PER_TOKEN
            + (text[place + 1] - text[place])
            + (0 if held is None else size_of(held))
        )

    def _drop(self, count: int, left: int) -> None:
        """Drop the oldest items; the buffers are recreated, because they don't shrink in place."""
        for position in range(self.first, self.first + count):
            self._objects.pop(position, None)
        self._tokens = self._tokens[self._token_ends[count] - self._token_ends[0] :]
        self._text = self._text[self._text_ends[count] - self._text_ends[0] :]
        self._kinds = self._kinds[count:]
        self._token_ends = self._token_ends[count:]
        self._text_ends = self._text_ends[count:]
        self.first += count
        self.held_bytes = left
        if self._on_drop is not None:
            self._on_drop()


def _plain(ids: list[int], text: str | None, index: int | None, *, by_token: bool) -> Item:
    tokens = [text] if by_token else None
    return Annotated(LLMEngineOutput(ids, tokens=tokens, text=text, index=index))


def _own(item: Item) -> Item:
    """Return a copy for one reader, including its error, whose traceback grows when raised."""
    own = own_copy(item)
    if own is item:
        own = copy.copy(item)
    if item.error is not None:
        own.error = copy.copy(item.error)
    return own


def _without_frames(error: BackendError) -> BackendError:
    """Return a copy without tracebacks, including those of its causes."""
    try:
        held = pickle.loads(pickle.dumps(error))  # noqa: S301  our own bytes
    except Exception:
        return KINDS[error.kind](error.message)
    return cast("BackendError", held)
