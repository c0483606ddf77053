"""Conversion between text and token ids, for servers that accept or return only text."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from rx_backend.errors import InvalidArgument

__all__ = ("Tokenizer", "TokenizerFile")


class Tokenizer(Protocol):
    """The methods of a tokenizer that the engine needs."""

    def decode(self, token_ids: list[int]) -> str:
        """Return the text of a prompt for the server."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a part of an answer, without added special tokens."""
        ...


class TokenizerFile:
    """
    A tokenizer of the ``tokenizers`` library, from a model's folder or its ``tokenizer.json``.

    Args:
        path: The file, or its folder.

    Raises:
        ImportError: The package ``tokenizers`` is not installed.
        InvalidArgument: There is no such file.
    """

    def __init__(self, path: str | Path) -> None:
        file = Path(path)
        if file.is_dir():
            file /= "tokenizer.json"
        if not file.is_file():
            raise InvalidArgument(f"tokenizer: there is no file {file}")
        try:
            tokenizers: Any = import_module("tokenizers")
        except ImportError as error:
            raise ImportError("tokenizer= needs the package: pip install tokenizers") from error
        self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(file))
        # The server adds these before any text, so a prompt must not have them as well.
        self._prefix: list[int] = self._tokenizer.encode("").ids

    def decode(self, token_ids: list[int]) -> str:
        """Return the text of a prompt, with special tokens except those that servers add."""
        count = len(self._prefix)
        own = token_ids[count:] if token_ids[:count] == self._prefix else token_ids
        text: str = self._tokenizer.decode(own, skip_special_tokens=False)
        return text

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, which may differ from those that the model generated."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids
