"""Items as the runtime's handlers yield them."""

from __future__ import annotations

from typing import Any

import pytest

from rx_backend.dynamo.wire import wire_item
from rx_backend.protocols import Annotated, convert_output


@pytest.mark.rows("TY-output")
@pytest.mark.parametrize(
    "wire",
    [
        {"token_ids": [1], "new": {"key": 2}},
        {"token_ids": [], "text": "no ids"},
        {"token_ids": [], "finish_reason": "stop", "index": 1, "new": 2},
    ],
)
def test_a_chunk_is_sent_as_its_wire_form(wire: dict[str, Any]) -> None:
    """With the engine's own keys, and with the ids, which the runtime requires, though there be none."""
    sent = wire_item(Annotated(data=convert_output(wire)))
    assert {name: sent[name] for name in wire} == wire
    assert "unknown" not in sent


def test_text_that_can_not_be_encoded_is_repaired_everywhere() -> None:
    """Half a character becomes a replacement: in lists, tuples, and the names of dicts."""
    data = {"a": ["\ud83d", {"b": ("\ud83d",), "\ud83d": 1}]}
    item = wire_item({"token_ids": [1], "engine_data": data, "\ud83d": 1})
    assert item["engine_data"] == {"a": ["\ufffd", {"b": ["\ufffd"], "\ufffd": 1}]}
    assert item["\ufffd"] == 1
