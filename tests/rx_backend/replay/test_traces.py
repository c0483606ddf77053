"""Traces as workloads: their formats, odd rows, and files of any size."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from itertools import islice
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rx_backend.errors import InvalidArgument
from rx_backend.recording import json_lines
from rx_backend.replay import Request, at_speed, read_trace

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
DAY = "2023-11-16 18:00:"
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*lines: str, end: str = "\r\n") -> Path:
        path = tmp_path / "trace"
        path.write_bytes("".join(line + end for line in lines).encode())
        return path

    return write


def mooncake(**row: object) -> str:
    return json.dumps({"timestamp": 0, "input_length": 1, "output_length": 1, **row})


# Formats.


@pytest.mark.parametrize(
    ("name", "lines", "expected"),
    [
        (
            "Azure",
            # 2023: seven digits, and across midnight.
            [AZURE, "2023-11-16 23:59:59.6805900,374,44", "2023-11-17 00:00:01.0000001,396,109"],
            [(0, 374, 44), (1.3194101, 396, 109)],
        ),
        (
            "Azure",
            # 2024: an offset, and a whole second without a fraction.
            [AZURE, "2024-05-10 00:00:00.009930+00:00,2162,5", "2024-05-10 02:00:01+02:00,76,15"],
            [(0, 2162, 5), (0.99007, 76, 15)],
        ),
        (
            "Azure",
            # 2025, multimodal: one column more.
            ["TIMESTAMP,NumImages,ContextTokens,GeneratedTokens", f"{DAY}01.5,2,76,15"],
            [(0, 76, 15)],
        ),
        ("Azure", [AZURE, "2024-05-10T00:00:01Z,7,5"], [(0, 7, 5)]),
        (
            "Azure",
            # Columns are found by name.
            ["GeneratedTokens,x, TIMESTAMP ,ContextTokens", f"5,,{DAY}00, 7 ", f'6,"a,b",{DAY}01,0'],
            [(0, 7, 5), (1, 0, 6)],
        ),
        (
            "BurstGPT",
            [BURST, "5,ChatGPT,472,18,490,API log", "45.5,GPT-4,417,276,693,Conversation log"],
            [(0, 472, 18), (40.5, 417, 276)],
        ),
        (
            "BurstGPT",
            ["Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens", "7,a,1,m,2,3"],
            [(0, 2, 3)],
        ),
        (
            "Mooncake",
            [mooncake(timestamp=1000, hash_ids=[46, 47]), "", mooncake(timestamp=3500, output_length=9)],
            [(0, 1, 1), (2.5, 1, 9)],
        ),
        ("Mooncake", [" " + mooncake(timestamp=0.5), mooncake(timestamp=1.75)], [(0, 1, 1), (0.00125, 1, 1)]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_formats(
    write: Write, name: str, lines: list[str], expected: list[tuple[float, int, int]], mark: str
) -> None:
    """A format is recognised by its first line, with and without a byte order mark."""
    for end in ("\r\n", "\n"):
        trace = read_trace(write(mark + lines[0], *lines[1:], end=end))
        assert trace.format == name
        rows = list(trace)
        assert [row[1:] for row in rows] == [row[1:] for row in expected]
        assert [row[0] for row in rows] == pytest.approx([row[0] for row in expected], abs=1e-6)


@given(
    after_us=st.lists(st.integers(0, 10**13), min_size=1, max_size=8),
    offset_min=st.integers(-14 * 60, 14 * 60),
    separator=st.sampled_from(" T"),
)
def test_times_are_instants(after_us: list[int], offset_min: int, separator: str) -> None:
    """However an instant is written (offset, separator, digits), it is the same arrival."""
    zone = timezone(timedelta(minutes=offset_min))
    epoch = datetime(1999, 12, 31, tzinfo=UTC)
    instants = [epoch + timedelta(microseconds=after) for after in sorted(after_us)]
    with tempfile.TemporaryDirectory() as folder:
        plain, shifted = Path(folder, "plain"), Path(folder, "shifted")
        for path, written in (
            (plain, [instant.replace(tzinfo=None).isoformat(" ") for instant in instants]),
            (shifted, [instant.astimezone(zone).isoformat(separator) for instant in instants]),
        ):
            path.write_text("\n".join([AZURE, *(f"{text},1,1" for text in written)]))
        arrivals = [row.arrival_s for row in read_trace(plain)]
        assert arrivals == [row.arrival_s for row in read_trace(shifted)]
    exact = [(instant - instants[0]).total_seconds() for instant in instants]
    assert arrivals == pytest.approx(exact, abs=1e-6)


# Rows.


@pytest.mark.parametrize(
    "lines",
    [
        [AZURE, f"{DAY}00,3,4", f"{DAY}01,12,0", f"{DAY}02,5,6", f"{DAY}03,0,0"],
        [BURST, "0,m,3,4,7,x", "1,m,12,0,12,x", "2,m,5,6,11,x", "3,m,0,0,0,x"],
        [
            mooncake(input_length=3, output_length=4),
            mooncake(timestamp=1000, output_length=0),
            mooncake(timestamp=2000, input_length=5, output_length=6),
            mooncake(timestamp=3000, output_length=0),
        ],
    ],
)
def test_rows_without_output_are_skipped_and_counted(write: Write, lines: list[str]) -> None:
    """A request that failed or generated nothing does not cost the file, nor counts for a limit."""
    trace = read_trace(write(*lines))
    assert list(trace) == [(0, 3, 4), (2, 5, 6)]
    assert trace.left_out == 2
    limited = read_trace(write(*lines), limit=2)
    assert (len(list(limited)), limited.left_out) == (2, 1)


def rows_at(*times: int) -> list[str]:
    return [f"{time},m,1,1,2,x" for time in times]


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([], "line 1: column TIMESTAMP is missing; expected the columns .* JSON Lines"),
        (["TIMESTAMP,GeneratedTokens"], "line 1: column ContextTokens is missing"),
        (["Timestamp,Model,Request tokens"], "line 1: column Response tokens is missing"),
        (["a,b"], r"\(Azure\) or .* \(BurstGPT\), or .* \(Mooncake\)"),
        ([AZURE], "has no requests"),
        ([AZURE, f"{DAY}00,1,0"], "has no requests with output tokens"),
        ([AZURE, "yesterday,1,1"], "line 2: column TIMESTAMP: .* got 'yesterday'"),
        ([AZURE, f"{DAY}00.5x,1,1"], "line 2: column TIMESTAMP"),
        ([AZURE, "2023-02-30 18:00:00,1,1"], "line 2: column TIMESTAMP"),
        ([AZURE, f"{DAY}00+99:00,1,1"], "line 2: column TIMESTAMP"),
        ([AZURE, "2023-11-16,1,1"], "line 2: column TIMESTAMP"),
        ([AZURE, f"{DAY}00,1,1", f"{DAY}01,-1,1"], "line 3: column ContextTokens"),
        ([AZURE, "", f"{DAY}00,1.5,1"], "line 3: column ContextTokens: .* got '1.5'"),
        ([AZURE, f"{DAY}00,\u0663,1"], "line 2: column ContextTokens"),
        ([AZURE, f"{DAY}00,1,{10**18}"], "GeneratedTokens: expected a whole number from 0 to 10000"),
        ([AZURE, f"{DAY}00,1,{'9' * 9999}"], "GeneratedTokens: expected .* got '9{60}'$"),
        ([AZURE, f"{DAY}00,1"], "line 2: column GeneratedTokens: .* got ''"),
        ([AZURE, f'{DAY}00,"1'], "line 2: column GeneratedTokens"),
        ([AZURE, "x" * 200_000], "line 2: field larger than field limit"),
        ([BURST, *rows_at(3, 5, 5, 4, 6)], "line 5: expected a time that is not before .*: sort"),
        ([BURST, "nan,m,1,1,1,x"], "line 2: column Timestamp: expected a time like 45.5"),
        ([BURST, "1e999,m,1,1,1,x"], "line 2: column Timestamp"),
        ([mooncake(timestamp=None)], r"line 1: \$.timestamp: expected float, got null"),
        ([mooncake(), '{"timestamp": 1}'], r"line 2: \$: object missing required field input_length"),
        ([mooncake(), mooncake(input_length=-1)], r"line 2: \$.input_length: expected int >= 0"),
        ([mooncake(output_length=10**18)], r"line 1: \$.output_length: expected int <= 10000000"),
        ([mooncake(), mooncake()[:20]], "line 2: expected a JSON object"),
        ([mooncake(), "[1]"], r"line 2: \$: expected object, got array"),
        ([mooncake(), '{"a":' + "[" * 9999], "line 2: expected a JSON object"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named(write: Write, lines: list[str], complaint: str) -> None:
    """With file, line and column or key, and what was expected."""
    path = write(*lines)
    with pytest.raises(InvalidArgument, match=complaint) as caught:
        list(read_trace(path))
    assert str(path) in caught.value.message


def test_invalid_text_matters_only_in_used_cells(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 are an error with line and column, or in no one's way."""
    path = tmp_path / "trace"
    path.write_bytes(f"{BURST}\n0,caf\xe9,1,1,2,x\n1,m,1,\xb2,3,x\n".encode("latin-1"))
    assert list(read_trace(path, limit=1)) == [(0, 1, 1)]
    with pytest.raises(InvalidArgument, match=r"line 3: column Response tokens: .*\ufffd"):
        list(read_trace(path))


@settings(max_examples=200)
@given(
    lines=st.sampled_from([[AZURE, f"{DAY}00.25,3,4"], [BURST, *rows_at(1, 2)], [mooncake()] * 2]),
    cut=st.integers(0, 200),
    junk=st.binary(max_size=3),
    skip=st.integers(0, 3),
)
def test_a_damaged_file(lines: list[str], cut: int, junk: bytes, skip: int) -> None:
    """Wherever bytes are lost, added or changed, there is a workload or the typed error."""
    whole = "\n".join([*lines, ""]).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace")
        path.write_bytes(whole[:cut] + junk + whole[cut + skip :])
        with suppress(InvalidArgument):
            for row in read_trace(path):
                assert row.output_tokens > 0
                assert row.arrival_s >= 0


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file, a folder and another encoding are typed errors too; so is a bad limit."""
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(InvalidArgument, match="can't be read"):
            read_trace(path)
    (tmp_path / "utf16").write_bytes(AZURE.encode("utf-16"))
    with pytest.raises(InvalidArgument, match="column TIMESTAMP is missing"):
        read_trace(tmp_path / "utf16")
    with pytest.raises(InvalidArgument, match="limit: expected"):
        read_trace(tmp_path, limit=0)
    with pytest.raises(InvalidArgument, match="path: expected a path, got None"):
        read_trace(cast("Any", None))


# Size.


def test_an_endless_line_is_not_read_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a line that never ends only so much is read that it can be refused."""
    monkeypatch.setattr(json_lines, "_MAX_BYTES", 2**21)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InvalidArgument, match="line 1: expected a line of at most 1 MiB"):
        read_trace(tmp_path / "sparse")


def big_trace(path: Path, rows: int) -> None:
    with path.open("w") as out:
        out.write(f"{BURST}\n")
        out.writelines(
            f"{n // 8},ChatGPT,{n % 1000},{n % 9},0,Conversation log\n" for n in range(rows)
        )


def test_a_long_trace_takes_little_memory(tmp_path: Path) -> None:
    """It is read and scaled as a stream, in memory that does not grow with the file."""
    big_trace(tmp_path / "trace", 12_000)
    tracemalloc.start()
    try:
        count, last = 0, 0.0
        trace = read_trace(tmp_path / "trace")
        for row in at_speed(trace, 2):
            count += 1
            assert row.arrival_s >= last
            last = row.arrival_s
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (count + trace.left_out, last) == (12_000, 11_999 // 8 / 2)
    # As a list they would be 2 MB.
    assert peak < 400_000


def test_a_limit_reads_no_further(tmp_path: Path) -> None:
    """Rows of an endless trace after the limit are not even read."""
    os.mkfifo(tmp_path / "endless")

    def write_for_ever() -> None:
        with suppress(BrokenPipeError), (tmp_path / "endless").open("w") as out:
            out.write(f"{BURST}\n")
            while True:
                out.write("1,m,1,1,2,x\n")

    writer = threading.Thread(target=write_for_ever)
    writer.start()
    rows: Iterator[Request] = read_trace(tmp_path / "endless", limit=2500)
    assert len(list(rows)) == 2500
    writer.join()
    with pytest.raises(StopIteration):
        next(rows)
    assert list(islice(rows, 3)) == []
