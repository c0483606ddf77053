"""Text that can be encoded: a lone surrogate would fail the export or the scrape it is part of."""

from __future__ import annotations

__all__ = ("encodable",)


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
