"""Items as the runtime's handlers yield them."""

from __future__ import annotations

from rx_backend.dynamo.wire import wire_item


def test_text_that_can_not_be_encoded_is_repaired_everywhere() -> None:
    """Half a character becomes a replacement: in lists, tuples, and the names of dicts."""
    data = {"a": ["\ud83d", {"b": ("\ud83d",), "\ud83d": 1}]}
    item = wire_item({"token_ids": [1], "engine_data": data, "\ud83d": 1})
    assert item["engine_data"] == {"a": ["\ufffd", {"b": ["\ufffd"], "\ufffd": 1}]}
    assert item["\ufffd"] == 1
