"""Whether what an engine yields is well-formed, and stays as it was (rows E2, E6)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from rx_backend.errors import InvalidArgument
from rx_backend.protocols import FinishReason, LLMEngineOutput, convert_output
from rx_backend.testing.conformance_report import Rule, Violation

__all__ = ("check_chunk", "check_untouched", "index_of")


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
    try:
        return convert_output(item).finish_reason, found
    except InvalidArgument as error:
        return _reason(reason), [*found, Violation(Rule.WRONG_ITEM_TYPE, error.message, error)]


def check_untouched(came: Iterable[tuple[object, object]]) -> list[Violation]:
    """Give what is wrong with items that came, each with a copy of what it was then."""
    for place, (item, copied) in enumerate(came):
        if not _same(item, copied):
            what = f"item {place} was {copied!r} when it was yielded, and {item!r} later"
            return [Violation(Rule.CHUNK_TOUCHED, what)]
    return []


def _same(item: object, copied: object) -> bool:
    """Whether an item is what it was; NaN is equal to itself here."""
    try:
        return item is copied or bool(item == copied) or repr(item) == repr(copied)
    except Exception:
        # There are objects that can't be compared.
        return True


def index_of(item: object) -> int:
    """Give the index of the answer that an item belongs to; 0 for one that says nothing of it."""
    if isinstance(item, Mapping):
        index = cast("Mapping[str, object]", item).get("index")
    else:
        index = getattr(item, "index", None)
    return index if type(index) is int else 0


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
