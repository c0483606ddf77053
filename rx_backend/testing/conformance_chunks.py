"""Whether one item that an engine yields is a well-formed chunk (row E2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from rx_backend.errors import InvalidArgument
from rx_backend.protocols import FinishReason, LLMEngineOutput, convert_output
from rx_backend.testing.conformance_report import Rule, Violation

__all__ = ("check_chunk",)


def check_chunk(item: object) -> tuple[FinishReason | None, list[Violation]]:
    """Give the finish reason of an item, and what is wrong with the item."""
    if isinstance(item, Mapping):
        return _check_mapping(cast("Mapping[str, Any]", item))
    if not isinstance(item, LLMEngineOutput):
        what = f"expected an LLMEngineOutput or a mapping, got {type(item).__name__}"
        return None, [Violation(Rule.WRONG_ITEM_TYPE, what)]
    found: list[Violation] = []
    wrong_ids = _wrong_token_ids(item.token_ids)
    if wrong_ids:
        found.append(Violation(Rule.BAD_TOKEN_IDS, wrong_ids))
    reason = cast("object", item.finish_reason)
    if reason is None or isinstance(reason, FinishReason):
        return reason, found
    what = f"finish_reason: expected a FinishReason or None, got {reason!r}"
    return _reason(reason), [*found, Violation(Rule.WRONG_ITEM_TYPE, what)]


def _check_mapping(item: Mapping[str, Any]) -> tuple[FinishReason | None, list[Violation]]:
    try:
        return convert_output(item).finish_reason, []
    except InvalidArgument as error:
        about_ids = "token_ids" in error.message.split(":", 1)[0]
        rule = Rule.BAD_TOKEN_IDS if about_ids else Rule.WRONG_ITEM_TYPE
        return _reason(item.get("finish_reason")), [Violation(rule, error.message, error)]


def _wrong_token_ids(token_ids: object) -> str | None:
    if not isinstance(token_ids, list):
        return f"token_ids: expected a list, got {type(token_ids).__name__}"
    for place, token_id in enumerate(cast("list[object]", token_ids)):
        if type(token_id) is not int or token_id >> 32:
            return f"token_ids[{place}]: expected an int from 0 to 4294967295, got {token_id!r}"
    return None


def _reason(value: Any) -> FinishReason | None:
    """Read the finish reason of a malformed item as well as it goes: it ends the stream too."""
    if value is None:
        return None
    try:
        return FinishReason.parse(value)
    except InvalidArgument:
        return FinishReason.error(f"unreadable finish_reason {value!r}")
