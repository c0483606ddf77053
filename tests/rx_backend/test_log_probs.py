"""Log probabilities of minus infinity survive JSON, which has no number for them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rx_backend.errors import InvalidArgument
from rx_backend.protocols import LLMEngineOutput, TopLogprob, convert_annotated, convert_output
from tests.wire import decode_output, encode

log_probs = st.lists(st.floats(max_value=0, allow_nan=False), max_size=4)


def top(logprob: float) -> TopLogprob:
    return TopLogprob(rank=1, token_id=7, logprob=logprob)


@given(own=log_probs, tops=st.lists(log_probs, max_size=3))
def test_a_chunk_is_read_back_as_it_was(own: list[float], tops: list[list[float]]) -> None:
    """Whatever is in the lists, also beside finite values and in empty lists."""
    chunk = LLMEngineOutput(
        [1], log_probs=own, top_logprobs=[[top(value) for value in values] for values in tops]
    )
    wire = encode(chunk)
    assert b"Infinity" not in wire
    assert decode_output(wire) == chunk


def test_null_from_an_engine_or_a_runtime() -> None:
    """It is minus infinity in mappings too, inside an item as well; they are not changed."""
    wire: dict[str, Any] = {
        "token_ids": [1],
        "log_probs": [None, -1.0],
        "top_logprobs": [[{"rank": 1, "token_id": 7, "logprob": None}]],
    }
    chunk = convert_output(wire)
    assert chunk.log_probs == [-math.inf, -1.0]
    assert chunk.top_logprobs == [[top(-math.inf)]]
    assert convert_annotated({"data": wire}).data == chunk
    assert wire["log_probs"] == [None, -1.0]


@pytest.mark.parametrize(
    ("field", "value", "where"),
    [
        ("log_probs", [None, "a"], r"\$\.log_probs\[1\]: expected float, got str"),
        ("log_probs", 7, r"\$\.log_probs: expected array"),
        ("top_logprobs", 7, r"\$\.top_logprobs: expected array"),
        ("top_logprobs", [None], r"\$\.top_logprobs\[0\]: expected array"),
        ("top_logprobs", [[None]], r"\$\.top_logprobs\[0\]\[0\]: expected object"),
        ("top_logprobs", [[{"rank": 1, "token_id": 7}]], r"logprob: required, but missing"),
    ],
)
def test_an_invalid_log_probability_is_named(field: str, value: object, where: str) -> None:
    """Other values are refused by their place."""
    with pytest.raises(InvalidArgument, match=where):
        convert_output({"token_ids": [1], field: value})
