"""Merging of chunks: what becomes of each field, and what keeps chunks apart."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators import authoring
from rx_backend import Annotated, FinishReason, LLMEngineOutput, TraceLink
from rx_backend.protocols import TopLogprob, usage
from tests.operators._help import Chunk, terminal, token


def merge_chunks(items: Sequence[Any]) -> tuple[Any, int]:
    """Merge chunks of which one comes out."""
    (merged,), count = authoring.merge_chunks(items)
    return merged, count


def full(*token_ids: int, **others: Any) -> LLMEngineOutput:
    """Return a chunk with everything that can be merged."""
    return LLMEngineOutput(
        list(token_ids),
        tokens=[f"<{token_id}>" for token_id in token_ids],
        text="".join(f"<{token_id}>" for token_id in token_ids),
        cum_log_probs=-float(sum(token_ids)),
        log_probs=[-float(token_id) for token_id in token_ids],
        top_logprobs=[
            [TopLogprob(rank=1, token_id=token_id, logprob=-0.5)] for token_id in token_ids
        ],
        index=0,
        **others,
    )


# A value for every field.
SET: dict[str, Any] = {
    "token_ids": [5],
    "tokens": ["five"],
    "text": "five",
    "output_type": "image",
    "content_parts": [{"type": "image_url"}],
    "cum_log_probs": -1.0,
    "log_probs": [-1.0],
    "top_logprobs": [[]],
    "finish_reason": FinishReason.STOP,
    "stop_reason": "###",
    "index": 1,
    "disaggregated_params": {"kv": 1},
    "encoder_result": {"image": 1},
    "worker_trace_link": TraceLink("a" * 32, "b" * 16),
    "extra_args": {"more": 1},
    "completion_usage": usage(1, 1),
    "engine_data": object(),
    "routing_data": {"worker": 1},
    "unknown": {"new": 1},
}


def test_every_mergeable_field_is_merged() -> None:
    """Lists and text are those of all chunks in order; the sum of logarithms is the last one's."""
    merged, count = merge_chunks([full(1), full(2, 3), full(4)])
    assert count == 3
    expected = full(1, 2, 3, 4)
    expected.cum_log_probs = -4.0
    assert merged == expected


def test_every_field_of_the_protocol_is_handled() -> None:
    """A field that is new in the protocol has to be thought about here."""
    assert set(SET) == set(LLMEngineOutput.__struct_fields__)


@pytest.mark.parametrize("field", [name for name in SET if name not in {"token_ids", "index"}])
def test_a_field_that_only_one_chunk_has_is_a_barrier(field: str) -> None:
    """On either side of it, chunks stay apart, and come out as the objects they are."""
    odd, plain = LLMEngineOutput([5]), LLMEngineOutput([1])
    setattr(odd, field, SET[field])
    for pair in ([odd, plain], [plain, odd]):
        item, count = merge_chunks(pair)
        assert item is pair[0]
        assert count == 1


MERGED = {
    "token_ids",
    "tokens",
    "text",
    "cum_log_probs",
    "log_probs",
    "top_logprobs",
    "index",
}


@pytest.mark.parametrize("field", sorted(SET.keys() - MERGED))
def test_a_field_that_can_not_be_merged_is_a_barrier(field: str) -> None:
    """Also beside a chunk that has the very same: two equal values may have to be added up."""
    chunk = full(5)
    setattr(chunk, field, SET[field])
    assert merge_chunks([chunk, copy.copy(chunk)]) == (chunk, 1)


@pytest.mark.parametrize("field", ["tokens", "log_probs", "top_logprobs"])
def test_a_list_without_one_entry_per_token_is_a_barrier(field: str) -> None:
    """Joined, its entries would belong to the wrong tokens."""
    short = full(1, 2)
    setattr(short, field, getattr(short, field)[:1])
    assert merge_chunks([short, full(3, 4)]) == (short, 1)
    assert merge_chunks([full(3, 4), short])[1] == 1


def test_chunks_are_recognized_by_shape() -> None:
    """Any class will do, also one without most fields; what it adds is a barrier when it is set."""
    assert merge_chunks([token(1), token(2), terminal(3)]) == (token(1, 2), 2)
    loose = [SimpleNamespace(token_ids=(n,), text=str(n), extra=None) for n in (1, 2, 3)]
    loose[2].extra = 0
    merged, count = merge_chunks(loose)
    assert (merged.token_ids, merged.text, count) == ([1, 2], "12", 2)

    class Mine(Chunk):
        pass

    assert merge_chunks([token(1), Mine([2])]) == (token(1), 1)


def test_items_other_than_mutable_chunks_are_not_merged() -> None:
    """It comes out as it is."""

    class Fixed(NamedTuple):
        token_ids: list[int]

    @dataclass(frozen=True)
    class Frozen:
        token_ids: list[int]

    items: list[Any]
    for items in (
        *(["a", "b"], [{"token_ids": [1]}] * 2, [None, None]),
        *([made([1]), made([2])] for made in (Fixed, Frozen)),
    ):
        assert merge_chunks(items) == (items[0], 1)


def test_annotated_chunks_are_merged() -> None:
    """Chunks in ``Annotated`` become one in ``Annotated``; anything beside the data is a barrier."""
    items = [Annotated(full(n)) for n in (1, 2, 3)]
    merged, count = merge_chunks(items)
    assert (merged.data, count) == (merge_chunks([full(1), full(2), full(3)])[0], 3)
    assert items[0] == Annotated(full(1))
    for odd in (
        Annotated.from_error(ValueError("gone")),
        Annotated(full(2), event="ping"),
        Annotated(full(2), comment=["note"]),
        Annotated(LLMEngineOutput.stop()),
        full(2),
    ):
        assert merge_chunks([items[0], odd, items[2]]) == (items[0], 1)
        assert merge_chunks([odd, items[2]]) == (odd, 1)


def of_answer(index: int | None, *token_ids: int, ends: bool = False) -> LLMEngineOutput:
    reason = FinishReason.STOP if ends else None
    return LLMEngineOutput(list(token_ids), index=index, finish_reason=reason)


@pytest.mark.rows("E3")
def test_interleaved_answers_are_merged_separately() -> None:
    """By index, in the order in which they began; an answer with one chunk keeps it."""
    waiting = [of_answer(index, n) for n, index in enumerate([1, 0, 1, 0, 2])]
    merged, count = authoring.merge_chunks(waiting)
    assert (merged, count) == ([of_answer(1, 0, 2), of_answer(0, 1, 3), of_answer(2, 4)], 5)
    assert merged[2] is waiting[4]
    envelopes, count = authoring.merge_chunks([Annotated(chunk) for chunk in waiting])
    assert ([item.data for item in envelopes], count) == (merged, 5)


@pytest.mark.rows("E3", "S1")
@given(
    st.lists(
        st.builds(
            of_answer, st.sampled_from([None, 0, 1, 2]), st.integers(0, 9), ends=st.booleans()
        ),
        min_size=1,
        max_size=12,
    )
)
def test_every_answer_keeps_its_tokens_and_their_order(waiting: list[LLMEngineOutput]) -> None:
    """Merged to the end, each answer reads as before, and its terminals are where they were."""
    before, out, rest = copy.deepcopy(waiting), list[LLMEngineOutput](), waiting
    while rest:
        merged, count = authoring.merge_chunks(rest)
        assert 1 <= len(merged) <= count
        out += merged
        rest = rest[count:]

    def read(chunks: list[LLMEngineOutput]) -> dict[int, list[object]]:
        ordered = sorted(chunks, key=lambda chunk: chunk.index or 0)
        return {
            index: [
                e for chunk in own for e in (*chunk.token_ids, *"|"[: bool(chunk.finish_reason)])
            ]
            for index, own in groupby(ordered, key=lambda chunk: chunk.index or 0)
        }

    assert read(out) == read(before)
    assert waiting == before
