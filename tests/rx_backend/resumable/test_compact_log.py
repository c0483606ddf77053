"""The compact log: every position is a place to read from, and what is held is bounded."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.authoring import merge_chunks
from rx_backend import Disconnected, InvalidArgument
from rx_backend.protocols import Annotated, FinishReason, LLMEngineOutput, TraceLink
from rx_backend.resumable._compact_log import CompactLog

Item = Annotated[LLMEngineOutput]
ROOMY = 1 << 30

ids = st.lists(st.integers(0, 2**32 - 1), max_size=3)
# The first and the last characters of each width, and halves of a pair of surrogates.
spellings = st.text(
    "a\0\x7f\x80\xff\u0100\u07ff\u0800\uffff\U00010000\U0010ffff\ud83d\ude00", max_size=4
)
texts = st.none() | spellings
indices = st.none() | st.integers(0, 3)
plain = st.builds(
    Annotated[LLMEngineOutput], st.builds(LLMEngineOutput, ids, text=texts, index=indices)
)


def detokenized(token_id: int, text: str, index: int | None) -> Item:
    """Return an item as `detokenize` makes it."""
    return Annotated(LLMEngineOutput([token_id], tokens=[text], text=text, index=index))


by_token = st.builds(detokenized, st.integers(0, 2**32 - 1), spellings, indices)
other = st.sampled_from(
    (
        lambda: Annotated(LLMEngineOutput([1], worker_trace_link=TraceLink("0" * 32, "1" * 16))),
        lambda: Annotated(LLMEngineOutput([1], log_probs=[-0.5])),
        lambda: Annotated(LLMEngineOutput([2], finish_reason=FinishReason.STOP)),
        lambda: Annotated(LLMEngineOutput([2], extra_args={"a": [1]})),
        lambda: Annotated(LLMEngineOutput([1], tokens=["a"])),
        lambda: Annotated(LLMEngineOutput([1], tokens=["a"], text="b")),
        lambda: Annotated(LLMEngineOutput([1], tokens=[None], text="b")),
        lambda: Annotated(LLMEngineOutput([1, 2], tokens=["a", "b"], text="ab")),
        lambda: Annotated(LLMEngineOutput([2**40])),
        lambda: Annotated(LLMEngineOutput([-1], text="x")),
        lambda: Annotated(LLMEngineOutput([1], index=-1)),
        lambda: Annotated(LLMEngineOutput([1]), event="progress"),
        lambda: Annotated[LLMEngineOutput](event="progress", comment=["half"]),
        lambda: Annotated.from_error(Disconnected("gone")),
    )
).map(lambda make: make())
items = st.lists(plain | by_token | other, max_size=30)


def filled(items: list[Item], max_bytes: int = ROOMY) -> CompactLog:
    log = CompactLog(max_bytes)
    for item in items:
        log.append(item)
    return log


def rest(log: CompactLog, position: int) -> list[Item]:
    found: list[Item] = []
    while position < log.head:
        item, after = log.read(position)
        assert after > position
        found.append(item)
        position = after
    return found


@dataclass
class Told:
    """What a client can make out of a plain run: one answer's tokens and text."""

    index: int | None
    has_text: bool
    token_ids: list[int]
    text: str
    tokens: list[str | None] | None

    @property
    def shape(self) -> tuple[object, ...]:
        return (self.index, self.has_text, self.tokens is None)


def is_plain(item: Item, chunk: LLMEngineOutput) -> bool:
    """Return whether an item is of a shape that may be merged, or was."""
    tokens, text = chunk.tokens, chunk.text
    if tokens is not None and (
        len(tokens) != len(chunk.token_ids) or text != "".join(map(str, tokens))
    ):
        return False
    return item == Annotated(
        LLMEngineOutput(chunk.token_ids, tokens=tokens, text=text, index=chunk.index)
    )


def split(items: list[Item]) -> list[object]:
    """Return what a client can make out: runs of tokens and text by answer, and all other items."""
    seen: list[object] = []
    for item in items:
        chunk = item.data
        if chunk is None or not is_plain(item, chunk):
            seen.append(repr(item))
            continue
        run = Told(
            chunk.index,
            chunk.text is not None,
            list(chunk.token_ids),
            chunk.text or "",
            None if chunk.tokens is None else list(chunk.tokens),
        )
        last = seen[-1] if seen else None
        if isinstance(last, Told) and last.shape == run.shape:
            last.token_ids += run.token_ids
            last.text += run.text
            if last.tokens is not None:
                last.tokens += run.tokens or []
        else:
            seen.append(run)
    return seen


@given(items)
def test_every_position_gives_exactly_the_rest(items: list[Item]) -> None:
    """Tokens, texts and all other items come once and in order, from wherever one begins."""
    log = filled(items)
    assert (log.first, log.head) == (0, len(items))
    for position in range(len(items) + 1):
        assert split(rest(log, position)) == split(items[position:])


def test_a_plain_run_comes_as_one_chunk_up_to_the_terminal() -> None:
    """A reader that is behind gets one merged chunk, and the terminal alone."""
    chunks = [LLMEngineOutput([n], text=f"{n} ") for n in range(200)]
    log = filled([*map(Annotated, chunks), Annotated(LLMEngineOutput.length())])
    for position in range(200):
        merged, terminal = rest(log, position)
        assert merged == Annotated(merge_chunks(chunks[position:])[0][0])
        assert terminal == Annotated(LLMEngineOutput.length())


def test_detokenized_chunks_are_merged_too() -> None:
    """They have the text of their token, and are held as compactly."""
    made = [detokenized(n, f"{n} é", None) for n in range(200)]
    log = filled(made)
    for position in range(200):
        chunks = [item.data for item in made[position:] if item.data]
        assert rest(log, position) == [Annotated(merge_chunks(chunks)[0][0])]
    plain_chunks = [LLMEngineOutput([n], text=f"{n} é") for n in range(200)]
    assert log.held_bytes == filled([Annotated(chunk) for chunk in plain_chunks]).held_bytes


def test_interleaved_answers_stay_separate() -> None:
    """Of several answers each chunk keeps its index."""
    chunks = [LLMEngineOutput([n], index=n % 2) for n in range(6)]
    assert rest(filled([Annotated(chunk) for chunk in chunks]), 2) == [
        Annotated(chunk) for chunk in chunks[2:]
    ]


@pytest.mark.rows("E6")
def test_held_items_are_copied() -> None:
    """An engine that touches its chunk later, and a reader that changes its own, change nothing."""
    chunk = LLMEngineOutput([7], log_probs=[-1.0])
    error = Annotated.from_error(Disconnected("gone"))
    log = filled([Annotated(LLMEngineOutput([7])), Annotated(chunk), error])
    chunk.token_ids.append(8)
    for _ in range(2):
        for item in rest(log, 0):
            item.id = "mine"
            if item.data is not None:
                item.data.token_ids.append(9)
    first, second, last = rest(log, 0)
    assert first == Annotated(LLMEngineOutput([7]))
    assert second == Annotated(LLMEngineOutput([7], log_probs=[-1.0]))
    assert (last.id, last.comment, error.id) == (None, ["gone"], None)


@pytest.mark.rows("E6")
def test_readers_that_keep_up_get_single_chunks() -> None:
    """What one of them does to the newest chunk is not seen by the next."""
    log = filled([Annotated(LLMEngineOutput([7], text="a"))])
    for _ in range(2):
        (item,) = rest(log, 0)
        assert item == Annotated(LLMEngineOutput([7], text="a"))
        assert item.data is not None
        item.data.token_ids.append(8)


def test_an_error_is_held_with_causes_but_without_frames() -> None:
    """The frames of an engine would be held as long as the answer."""

    def fail() -> None:
        try:
            b"".index(b"cable")
        except ValueError as cause:
            raise Disconnected("gone") from cause

    with pytest.raises(Disconnected) as error:
        fail()
    log = filled([Annotated.from_error(error.value)])
    held = rest(log, 0)[0].error
    assert isinstance(held, Disconnected)
    assert held.__traceback__ is None
    assert isinstance(held.__cause__, ValueError)
    assert held.__cause__.__traceback__ is None


def test_a_non_item_is_rejected() -> None:
    """A pipeline whose items are of another type gets an error that says so."""
    with pytest.raises(
        InvalidArgument, match="expected Annotated items for a resumable stream, got str"
    ):
        CompactLog(ROOMY).append("text")  # type: ignore[arg-type]


@given(items, st.integers(1, 600), st.data())
def test_delivered_items_are_dropped_first(
    items: list[Item], max_bytes: int, data: st.DataObject
) -> None:
    """With room asked for before each item the bound holds but for the last one; no gap appears."""
    log = CompactLog(max_bytes)
    delivered = 0
    for item in items:
        delivered = data.draw(st.integers(max(delivered, log.first), log.head))
        before = log.held_bytes
        if not log.make_room(delivered):
            # Everything that may go is gone.
            assert log.first == delivered
            assert log.held_bytes >= max_bytes
            delivered = log.head
            assert log.make_room(delivered)
        assert log.held_bytes <= before
        assert log.held_bytes < max_bytes
        log.append(item)
        assert log.first <= delivered
        for position in range(log.first, log.head + 1):
            assert split(rest(log, position)) == split(items[position : log.head])
    log.make_room(log.head)
    assert log.held_bytes < max_bytes


def words(n: int) -> Item:
    return Annotated(LLMEngineOutput([n], text="word "))


def probable(n: int) -> Item:
    return Annotated(LLMEngineOutput([n], log_probs=[-float(n)], extra_args={"n": [n]}))


@pytest.mark.parametrize(("make", "most"), [(words, 1.3), (probable, 1.5)])
def test_the_counted_bytes_are_the_actual_memory(make: Callable[[int], Item], most: float) -> None:
    """The bytes that are counted are those that Python allocates, but for spare room."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        log = CompactLog(ROOMY)
        for n in range(1000, 21_000):
            log.append(make(n))
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert log.held_bytes * 0.9 <= taken <= log.held_bytes * most


def test_a_token_takes_few_bytes() -> None:
    """Far less than a chunk of its own."""
    assert filled([words(n) for n in range(1_000)]).held_bytes == 1_000 * (24 + 4 + 5)
