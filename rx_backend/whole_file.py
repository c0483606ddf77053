"""Files that are replaced atomically."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

__all__ = ("whole_file", "write_whole")


@contextmanager
def whole_file(path: str | Path) -> Generator[BinaryIO]:
    """
    Open a file that replaces *path* at the end of the block; if the block fails, it is removed.

    Until then *path* is unchanged: readers never see a partial file. A path that is not a regular
    file, such as a pipe, is written directly.

    Raises:
        OSError: The file can't be written.
    """
    target = Path(path).resolve()  # follow a link
    if target.exists() and not target.is_file():
        with target.open("wb") as file:
            yield file
        return
    part = target.with_name(f".{token_hex(8)}.part")
    try:
        with _opened(part, path) as file:
            yield file
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_whole(path: str | Path, content: bytes) -> None:
    """
    Write a file as :func:`whole_file` does.

    Raises:
        OSError: The file can't be written.
    """
    with whole_file(path) as file:
        file.write(content)


def _opened(part: Path, path: str | Path) -> BinaryIO:
    try:
        return part.open("xb")
    except OSError as error:
        error.filename = str(path)
        raise
