"""Checks of an engine's items: well-formed, and unchanged later (rows E2, E6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from msgspec.structs import asdict

from operators.assembly import is_terminal
from rx_backend.errors import InvalidArgument
from rx_backend.protocols import FinishReason, LLMEngineOutput, convert_output
from rx_backend.testing.conformance_report import Rule, Violation

__all__ = ("is_unchanged", "read_item")


def read_item(item: object) -> tuple[int, FinishReason | None, Violation | None]:
    """Return an item's answer, its finish reason, and what is wrong with it."""
    if not isinstance(item, LLMEngineOutput | Mapping):
        what = f"expected an LLMEngineOutput or a mapping, got {type(item).__name__}"
        return 0, None, Violation(Rule.WRONG_ITEM_TYPE, what)
    try:
        chunk = _checked(convert_output(cast("LLMEngineOutput", item)))
    except InvalidArgument as error:
        about_ids = "token_ids" in error.message.split(":", 1)[0]
        rule = Rule.BAD_TOKEN_IDS if about_ids else Rule.WRONG_ITEM_TYPE
        # A malformed terminal also ends the stream.
        reason = FinishReason.error("malformed") if is_terminal(item) else None
        return 0, reason, Violation(rule, error.message, error)
    return chunk.index or 0, chunk.finish_reason, None


def _checked(chunk: LLMEngineOutput) -> LLMEngineOutput:
    """Return a copy of *chunk* with each field checked, as the constructor checks none."""
    ids = cast("object", chunk.token_ids)
    if not isinstance(ids, list):
        raise InvalidArgument(f"token_ids: expected a list, got {type(ids).__name__}")
    return convert_output(asdict(chunk))


def is_unchanged(item: object, before: object) -> bool:
    """Return whether an item is unchanged; NaN equals itself here."""
    try:
        return item is before or bool(item == before) or repr(item) == repr(before)
    except Exception:
        # Some objects can't be compared.
        return True
