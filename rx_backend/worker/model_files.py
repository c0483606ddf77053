"""The files of a model: finding its tokenizer, and a placeholder for engines without a model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import msgspec

from rx_backend.errors import InvalidArgument
from rx_backend.whole_file import write_whole
from rx_backend.worker.bad_setting import BadSetting
from rx_backend.worker.gguf_tokenizer import gguf_tokenizer_files

__all__ = (
    "NUMBERS",
    "NoTokenizer",
    "find_tokenizer",
    "has_model_files",
    "is_model",
    "shared_model_folder",
    "tokenizer_folder",
    "write_model_files",
)

NUMBERS = 1000
"""How many token ids, from 0 on, are numbers; the 256 bytes follow, then the end of text."""

_TOKENIZERS = ("tokenizer.json", "tiktoken.model")
_CONTEXT_LENGTH = 32_768
_END = "<|end|>"
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def has_model_files(folder: str | Path) -> bool:
    """Whether *folder* holds a model: ``config.json`` or ``tokenizer.json``."""
    return any(Path(folder, name).is_file() for name in ("config.json", *_TOKENIZERS))


class NoTokenizer(BadSetting):
    """A model has no tokenizer that a frontend can read; any other would produce nonsense."""


def tokenizer_folder(path: str | Path, option: str) -> str:
    """
    Return the folder with the tokenizer at *path*; a GGUF file's is extracted to one.

    Args:
        path: A folder, or a GGUF file.
        option: The option with the path, for the error.

    Raises:
        InvalidArgument: There is no model.
    """
    if has_model_files(path):
        return str(path)
    found = find_tokenizer(path)
    if found is None:
        expected = "a folder with config.json or tokenizer.json"
        raise InvalidArgument(f"{option}: expected {expected}, got {str(path)!r}")
    return found


def find_tokenizer(model: str | Path) -> str | None:
    """
    Return the folder with a model's own tokenizer, or None; a GGUF file's is extracted to one.

    Raises:
        BadSetting: A GGUF file's tokenizer can't be converted.
    """
    if any(Path(model, name).is_file() for name in _TOKENIZERS):
        return str(model)
    if Path(model).suffix == ".gguf" and Path(model).is_file():
        return str(_shared(gguf_tokenizer_files(Path(model))))
    return None


def is_model(name: str) -> bool:
    """Whether an engine's model name is the path of a model: a path, or a folder with a config."""
    path = Path(name)
    return path.exists() and (len(path.parts) > 1 or (path / "config.json").is_file())


def write_model_files(folder: Path, context_length: int | None = None) -> Path:
    """
    Write the files of a model that a frontend reads, with a tokenizer that needs no training.

    Text becomes one token per byte of UTF-8. The token ids below :data:`NUMBERS` decode to their
    own number, so that the output of an engine that counts is readable.

    Args:
        folder: An existing folder.
        context_length: In tokens; 32,768 by default.

    Returns:
        The folder.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     sorted(file.name for file in write_model_files(Path(folder)).iterdir())
    ['config.json', 'generation_config.json', 'tokenizer.json', 'tokenizer_config.json']
    """
    for name, content in _files(context_length or _CONTEXT_LENGTH).items():
        _write(folder / name, content)
    return folder


def shared_model_folder(context_length: int | None = None) -> Path:
    """
    Return a folder with these files, the same one for all workers of the user.

    A frontend sends requests to two workers of one model only if both use the same folder. It is in
    the user's cache (``XDG_CACHE_HOME``, else ``~/.cache``), or in the system's temporary folder if
    that isn't writable. It takes a few kB, and is kept.

    Args:
        context_length: In tokens; 32,768 by default.

    Raises:
        OSError: Neither folder can be written, or the temporary one is another user's.
    """
    return _shared(_files(context_length or _CONTEXT_LENGTH))


def _shared(files: Mapping[str, bytes]) -> Path:
    """Write files to a folder of the user whose name depends only on their content."""
    digest = sha256(b"".join(files.values())).hexdigest()[:16]
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return _written(Path(cache, "rx-backend"), digest, files)
    except (OSError, RuntimeError):  # no home
        return _written(Path(gettempdir(), f"rx-backend-{os.getuid()}"), digest, files)


def _written(parent: Path, digest: str, files: Mapping[str, bytes]) -> Path:
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if parent.lstat().st_uid != os.getuid():
        raise PermissionError(f"{parent} belongs to another user")
    folder = parent / f"model-{digest}"
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        _write(folder / name, content)
    return folder


def _write(path: Path, content: bytes) -> None:
    """Write a file that other processes may be reading or writing, unless it exists."""
    if path.is_file() and path.read_bytes() == content:
        return
    write_whole(path, content)


def _files(context_length: int) -> dict[str, bytes]:
    vocabulary = _vocabulary()
    end = vocabulary[_END]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    special = {"id": end, "content": _END, "special": True, **dict.fromkeys(flags, False)}
    files: dict[str, dict[str, Any]] = {
        "tokenizer.json": {
            "version": "1.0",
            "added_tokens": [special],
            "pre_tokenizer": byte_level,
            "decoder": byte_level,
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": _CHAT_TEMPLATE,
            "eos_token": _END,
            "model_max_length": context_length,
        },
        "config.json": {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "max_position_embeddings": context_length,
            "vocab_size": len(vocabulary),
            "eos_token_id": end,
        },
        "generation_config.json": {"eos_token_id": end},
    }
    return {name: msgspec.json.encode(content) for name, content in files.items()}


def _vocabulary() -> dict[str, int]:
    """Return token ids by text, in the alphabet in which byte-level tokenizers write bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + place) for place, byte in enumerate(others)}
    space = letters[ord(" ")]
    texts = [f"{space}{number}" for number in range(NUMBERS)]
    texts += [letters[byte] for byte in range(256)]
    return {text: token_id for token_id, text in enumerate([*texts, _END])}
