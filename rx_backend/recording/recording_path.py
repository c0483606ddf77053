"""Where the file of a stream is created."""

from __future__ import annotations

import time
from os import PathLike
from pathlib import Path
from typing import BinaryIO, Final, cast
from urllib.parse import quote

from rx_backend.errors import InvalidArgument

__all__ = ("check_folder", "create_file")

_MAX_NAME: Final = 120


def create_file(folder: str | PathLike[str], request_id: str | None) -> BinaryIO:
    """
    Create ``<request id>.jsonl``, or ``<request id>_<time in ns>.jsonl`` where that exists.

    Creation is exclusive: no two streams share a file, not even those of different processes. The
    files of one request sort by the time of their creation.

    Args:
        folder: The directory; it is created when it is needed.
        request_id: Characters that don't belong in a file name are escaped as in a URL, and a long
            id is cut. None for ``stream``.

    Returns:
        The file, open for writing; its ``name`` is the path.

    Raises:
        OSError: It can't be created.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    name = quote(request_id or "stream", safe=" @+,=", errors="replace")[:_MAX_NAME]
    path = Path(folder, f"{name}.jsonl")
    while True:
        try:
            return cast("BinaryIO", path.open("xb"))
        except FileExistsError:
            path = Path(folder, f"{name}_{time.time_ns()}.jsonl")


def check_folder(folder: str | PathLike[str], **_: object) -> None:
    """Raise ``InvalidArgument`` unless *folder* can be a directory."""
    try:
        path = Path(folder)
    except TypeError:
        raise InvalidArgument(f"record: folder: expected a path, got {folder!r}") from None
    if path.suffix == ".jsonl" or (path.exists() and not path.is_dir()):
        raise InvalidArgument(f"record: folder: expected a directory, got the file {str(path)!r}")
