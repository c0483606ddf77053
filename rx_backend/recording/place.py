"""Where the file of a stream goes."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from string import Formatter
from threading import Lock
from typing import BinaryIO, cast
from urllib.parse import quote

from rx_backend.errors import InvalidArgument
from rx_backend.recording.model import RecordedRequest

__all__ = ("Place", "check_path")

_KNOWN = ("request_id", "model", "mode")
_LONGEST = 120


class Place:
    """
    Gives each stream a file of its own.

    Args:
        path: A file; a directory, by a trailing slash or by being one; or a template of a path.
        request: What the placeholders stand for.

    Raises:
        InvalidArgument: The template doesn't fit, or a placeholder's value is not known.
    """

    __slots__ = ("_numbered", "_template", "_values")

    def __init__(self, path: str | os.PathLike[str], request: RecordedRequest) -> None:
        template = _template(path)
        if template.endswith(("/", os.sep)) or Path(template).is_dir():
            name = "{number:06}" if request.request_id is None else "{request_id}"
            template = os.path.join(template, f"{name}.jsonl")  # noqa: PTH118  # a Path would drop the slash
        self._template = template
        self._values = {name: _file_name(getattr(request, name)) for name in _KNOWN}
        names = _placeholders(template)
        for name in names:
            if name != "number" and not self._values[name]:
                raise InvalidArgument(
                    f"record: path: {{{name}}} is not known in {template!r}: "
                    f"expected scope or {name} to be passed"
                )
        self._numbered = "number" in names

    def __repr__(self) -> str:
        return f"Place({self._template!r})"

    def __str__(self) -> str:
        return self._template

    def create(self) -> BinaryIO:
        """
        Make the file for one stream, and the directories above it, and open it for writing.

        Call :meth:`release` with its name when nothing more will be written.

        Raises:
            OSError: It can't be made.
        """
        while True:
            path = self._next_path()
            try:
                file = _open(path, "xb" if self._numbered else "wb")
            except FileExistsError:
                if not self._numbered:
                    raise
            except BaseException:
                self.release(path)
                raise
            else:
                return file

    def release(self, path: Path) -> None:
        """The file is complete: another stream may replace it."""
        _being_written.discard(path)

    def _next_path(self) -> Path:
        if self._numbered:
            return self._path(_first_free(lambda number: self._path(number).exists()))
        first = self._path()
        path, number = first, 1
        with _lock:
            while path in _being_written:
                number += 1
                path = first.with_stem(f"{first.stem}-{number}")
            _being_written.add(path)
        return path

    def _path(self, number: int = 0) -> Path:
        return Path(self._template.format(**self._values, number=number))


def check_path(path: str | os.PathLike[str]) -> None:
    """Raise ``InvalidArgument`` where *path* is no path, or no template of one."""
    _placeholders(_template(path))


def _template(path: str | os.PathLike[str]) -> str:
    try:
        return os.fsdecode(path)
    except TypeError:
        raise InvalidArgument(f"record: path: expected a path, got {path!r}") from None


# Streams beside each other never write to the same file.
_being_written: set[Path] = set()
_lock = Lock()


@lru_cache(maxsize=64)
def _placeholders(template: str) -> set[str]:
    try:
        names = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
        if names <= {*_KNOWN, "number"}:
            template.format(**dict.fromkeys(_KNOWN, ""), number=1)
            return names
    except (ValueError, KeyError, IndexError) as error:
        raise InvalidArgument(f"record: path: {template!r} is no template: {error}") from None
    unknown = min(names - {*_KNOWN, "number"})
    raise InvalidArgument(
        "record: path: expected the placeholders {request_id}, {model}, {mode} and {number}, "
        f"got {{{unknown}}}"
    )


def _file_name(value: str | None) -> str:
    """Make a part of a file name of something that a client may have chosen."""
    if value is None:
        return ""
    name = quote(value, safe=" @+,=") or "_"
    if not name.strip("."):
        name = name.replace(".", "%2E")
    if len(name) > _LONGEST:
        digest = blake2b(value.encode(errors="surrogatepass"), digest_size=8).hexdigest()
        name = f"{name[: _LONGEST - 17]}-{digest}"
    return name


def _first_free(is_taken: Callable[[int], bool]) -> int:
    """Find a number that is free: with numbers given out in order, the one after the last."""
    high = 1
    while is_taken(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_taken(middle) else (low, middle)
    return high


def _open(path: Path, mode: str) -> BinaryIO:
    try:
        return cast("BinaryIO", path.open(mode))
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return cast("BinaryIO", path.open(mode))
