"""Text that can be encoded: a lone surrogate would fail the export or the scrape it is part of."""

from __future__ import annotations

from typing import Any, cast

__all__ = ("encodable", "encodable_data")


def encodable(text: str) -> str:
    r"""
    Return *text* with U+FFFD for what UTF-8 can't express (row P10).

    >>> encodable("caf\u00e9"), encodable("cut \ud83d")
    ('café', 'cut �')
    """
    if text.isascii():
        return text
    # Two surrogates that are a pair become their character.
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def encodable_data(value: Any) -> Any:
    """Return plain data with all text in it made :func:`encodable`, that of keys included."""
    if type(value) is str:
        return encodable(value)
    if type(value) is dict:
        pairs = cast("dict[Any, Any]", value).items()
        return {encodable_data(name): encodable_data(each) for name, each in pairs}
    if type(value) in {list, tuple}:
        return [encodable_data(each) for each in cast("list[Any]", value)]
    return value
