"""A tokenizer whose tokens are bytes, made here: a text's token ids are its bytes in UTF-8."""

from __future__ import annotations

from typing import Any

__all__ = ("END", "byte_tokenizer", "fallback_tokenizer")

END = 256
"""The special token that ends an answer."""

# Bytes that stand for themselves in the alphabet of byte-level tokenizers; the others are moved up.
_VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]


def byte_tokenizer() -> Any:
    """Return a ``tokenizers.Tokenizer``, of which pyright knows too little."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    moved = [byte for byte in range(256) if byte not in _VISIBLE]
    vocabulary = {chr(byte): byte for byte in _VISIBLE}
    vocabulary |= {chr(256 + place): byte for place, byte in enumerate(moved)}
    tokenizer: Any = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([tokenizers.AddedToken("<end>", special=True)])
    return tokenizer


def fallback_tokenizer(*words: str) -> Any:
    """Return one as of Llama 2: tokens 0 to 255 are the bytes, for what is none of the *words*."""
    import tokenizers
    from tokenizers import decoders, models

    names = [*(f"<0x{byte:02X}>" for byte in range(256)), *words]
    vocabulary = {name: place for place, name in enumerate(names)}
    tokenizer: Any = tokenizers.Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer
