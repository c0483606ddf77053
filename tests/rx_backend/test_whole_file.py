"""Files that are there as a whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rx_backend.pictures import MarbleRun
from rx_backend.replay import ReplayResult, summarize, write_requests, write_summary
from rx_backend.whole_file import whole_file, write_whole
from tests.full_disk import disk_with

RESULT = ReplayResult()
RESULT.stopped_by = "x" * 200
WRITERS: dict[str, Callable[[Path], object]] = {
    "requests": lambda path: write_requests(path, RESULT),
    "summary": lambda path: write_summary(path, summarize(RESULT)),
    "picture": lambda path: MarbleRun("-a-|").pipe().save(path),
}


@pytest.mark.parametrize("before", [None, b"before"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_keeps_the_existing_file(
    tmp_path: Path, writer: str, before: bytes | None
) -> None:
    """Neither half a file nor one beside it, of any file that the library replaces."""
    path = tmp_path / "figures.png"
    if before is not None:
        path.write_bytes(before)
    with disk_with(100), pytest.raises(OSError, match="too large"):
        WRITERS[writer](path)
    assert [each.read_bytes() for each in tmp_path.iterdir()] == ([before] if before else [])


def test_an_interrupt_keeps_the_existing_file(tmp_path: Path) -> None:
    """Until the end of the block the earlier file is read."""
    path = tmp_path / "figures"
    write_whole(path, b"before")

    def interrupted() -> None:
        with whole_file(path) as file:
            file.write(b"half")
            file.flush()
            assert path.read_bytes() == b"before"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"before"]
    with whole_file(path) as file:
        file.write(b"after")
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"after"]


def test_it_has_ordinary_permissions(tmp_path: Path) -> None:
    """Others may read it as far as the user lets them; a link leads to it still."""
    path, link, other = (tmp_path / name for name in ("file", "link", "other"))
    link.symlink_to(path)
    write_whole(link, b"content")
    other.touch()
    assert link.is_symlink()
    assert path.read_bytes() == b"content"
    assert path.stat().st_mode == other.stat().st_mode


def test_a_device_is_written_to_directly(tmp_path: Path) -> None:
    """A pipe keeps its place."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(path, b"content")
        assert os.read(reading, 100) == b"content"
    finally:
        os.close(reading)
    assert path.is_fifo()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """By the path that was given."""
    path = tmp_path / "none" / "figures"
    with pytest.raises(FileNotFoundError) as raised:
        write_whole(path, b"")
    assert raised.value.filename == str(path)
