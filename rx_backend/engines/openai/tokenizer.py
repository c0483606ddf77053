"""Text from token ids and back, for servers that know text only."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from rx_backend.errors import InvalidArgument

__all__ = ("Tokenizer", "TokenizerFile")


class Tokenizer(Protocol):
    """What an engine needs of a tokenizer."""

    def decode(self, token_ids: list[int]) -> str:
        """Return the text of a prompt, as the server has to get it."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a part of an answer, without special tokens around it."""
        ...


class TokenizerFile:
    """
    A tokenizer of the ``tokenizers`` library, from a model's folder or its ``tokenizer.json``.

    Args:
        path: The file, or the folder that has it.

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
        # The server puts these in front of any text, so a prompt must not have them too.
        self._prefix: list[int] = self._tokenizer.encode("").ids

    def decode(self, token_ids: list[int]) -> str:
        """Return the text of a prompt, special tokens included, but for those that servers add."""
        count = len(self._prefix)
        own = token_ids[count:] if token_ids[:count] == self._prefix else token_ids
        text: str = self._tokenizer.decode(own, skip_special_tokens=False)
        return text

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text; may differ from those that the model generated."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids
