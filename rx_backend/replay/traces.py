"""Traces of production traffic as workloads: Azure, BurstGPT and Mooncake."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from heapq import heapify, heappushpop
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Final, NamedTuple, TypeAlias

import msgspec
from msgspec import Meta, Struct

from rx_backend.engines.checks import whole
from rx_backend.errors import InvalidArgument
from rx_backend.recording.json_lines import decode_line, read_lines
from rx_backend.replay.workload import Request

__all__ = ("Trace", "read_trace")

_WINDOW: Final = 10_000
_MAX_LINE: Final = 2**20
_MAX_TOKENS: Final = 10_000_000

_Row: TypeAlias = tuple[int, int, int, int]
"""Time in ns, line, tokens of prompt and output."""


def read_trace(path: str | Path, *, limit: int | None = None) -> Trace:
    """
    Read a trace of requests as a workload.

    The format is recognised by the first line:

    - Azure LLM inference traces of 2023, 2024 and 2025: CSV with the columns ``TIMESTAMP``,
      ``ContextTokens`` and ``GeneratedTokens``. Times are ISO 8601 with any number of fractional
      digits; without an offset they are taken as UTC.
    - BurstGPT: CSV with ``Timestamp`` (in seconds), ``Request tokens`` and ``Response tokens``.
    - Mooncake, and the timed traces of vLLM and guidellm: JSON Lines with ``timestamp``,
      ``input_length`` and ``output_length``. Times are in ms; for a trace in seconds, see
      `at_speed` with a speed of 0.001.

    Further columns and keys are ignored. Arrivals count from the first request. Rows without output
    tokens, which failed or generated nothing, are left out and counted. The file is read as the
    requests are taken, in a few MB of memory; rows may be up to 10,000 places out of order.

    Args:
        path: The file.
        limit: Maximum number of requests, from the start of the file; None for all.

    Raises:
        InvalidArgument: The file can't be read, is of none of these formats, has no requests, or a
            row is not valid; the message names file, line and column. Raised while the requests are
            taken where the fault is not in the first line.
    """
    return Trace(path, None if limit is None else whole("limit", limit, low=1, unit="requests"))


class Trace(Iterator[Request]):
    """
    The requests of a trace file, in the order of their arrival.

    Attributes:
        format: ``Azure``, ``BurstGPT`` or ``Mooncake``.
        left_out: Number of rows without output tokens, so far.
    """

    def __init__(self, path: str | Path, limit: int | None) -> None:
        self.left_out = 0
        self._path = Path(path)
        self._line = 1
        lines = self._lines()
        first = next(lines, b"")
        parse = self._json_rows if first.lstrip().startswith(b"{") else self._csv_rows
        self.format, rows = parse(chain((first,), lines))
        self._requests = self._in_order(islice(self._with_output(rows), limit))

    def __next__(self) -> Request:
        """Return the next request."""
        return next(self._requests)

    def _error(self, problem: str) -> InvalidArgument:
        return InvalidArgument(f"trace {self._path}, line {self._line}: {problem}")

    def _lines(self) -> Iterator[bytes]:
        try:
            with self._path.open("rb") as file:
                for self._line, line in enumerate(read_lines(file), 1):
                    if len(line) > _MAX_LINE:
                        raise self._error("expected a line of at most 1 MiB")
                    if line.strip():
                        yield line.removeprefix(b"\xef\xbb\xbf") if self._line == 1 else line
        except OSError as error:
            raise InvalidArgument(f"trace {self._path}: can't be read: {error.strerror}") from error

    def _json_rows(self, lines: Iterator[bytes]) -> tuple[str, Iterator[_Row]]:
        return "Mooncake", map(self._json_row, lines)

    def _json_row(self, line: bytes) -> _Row:
        try:
            row = decode_line(line, _mooncake)
        except InvalidArgument as error:
            raise self._error(error.message) from None
        return round(row.timestamp * 1e6), self._line, row.input_length, row.output_length

    def _csv_rows(self, lines: Iterator[bytes]) -> tuple[str, Iterator[_Row]]:
        cells = self._cells(line.decode(errors="surrogateescape") for line in lines)
        header = [name.strip() for name in next(cells, ())]
        kind = max(_CSV_FORMATS, key=lambda kind: len({*kind.columns} & {*header}))
        for column in kind.columns:
            if column not in header:
                raise self._error(f"column {column} is missing; {_EXPECTED}")
        places = [header.index(column) for column in kind.columns]
        return kind.name, (self._csv_row(kind, places, fields) for fields in cells)

    def _cells(self, lines: Iterator[str]) -> Iterator[list[str]]:
        try:
            yield from csv.reader(lines)
        except csv.Error as error:
            raise self._error(str(error)) from None

    def _csv_row(self, kind: _CsvFormat, places: list[int], fields: list[str]) -> _Row:
        cells = [fields[place].strip() if place < len(fields) else "" for place in places]
        time_ns, prompt, output = kind.to_ns(cells[0]), _count(cells[1]), _count(cells[2])
        if time_ns is not None and prompt is not None and output is not None:
            return time_ns, self._line, prompt, output
        place = (time_ns, prompt, output).index(None)
        expected = (
            f"a whole number from 0 to {_MAX_TOKENS}" if place else f"a time like {kind.like}"
        )
        problem = f"expected {expected}, got {cells[place][:60]!r}"
        raise self._error(f"column {kind.columns[place]}: {problem}")

    def _with_output(self, rows: Iterator[_Row]) -> Iterator[_Row]:
        for row in rows:
            if row[3]:
                yield row
            else:
                self.left_out += 1

    def _in_order(self, rows: Iterator[_Row]) -> Iterator[Request]:
        start_ns = last_ns = None
        for time_ns, line, prompt, output in _sorted(rows):
            if start_ns is None or last_ns is None:
                start_ns = last_ns = time_ns
            if time_ns < last_ns:
                self._line = line
                raise self._error(
                    f"expected rows at most {_WINDOW:,} places out of order: sort them by time"
                )
            last_ns = time_ns
            yield Request((time_ns - start_ns) / 1e9, prompt, output)
        if start_ns is None:
            raise InvalidArgument(f"trace {self._path}: has no requests with output tokens")


def _sorted(rows: Iterator[_Row]) -> Iterator[_Row]:
    """Sort rows that are up to `_WINDOW` places out of order."""
    waiting = list(islice(rows, _WINDOW))
    heapify(waiting)
    for row in rows:
        yield heappushpop(waiting, row)
    waiting.sort()
    yield from waiting


class _CsvFormat(NamedTuple):
    name: str
    columns: tuple[str, str, str]
    to_ns: Callable[[str], int | None]
    like: str


_SECONDS = re.compile(r"(\d{1,12})(?:\.(\d+))?", re.ASCII)
_MOMENT = re.compile(
    r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:?\d\d)?", re.ASCII
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _count(text: str) -> int | None:
    is_count = text.isascii() and text.isdigit() and len(text) <= len(str(_MAX_TOKENS))
    return int(text) if is_count and int(text) <= _MAX_TOKENS else None


def _azure_ns(text: str) -> int | None:
    match = _MOMENT.fullmatch(text)
    if match is None:
        return None
    moment, fraction, offset = match.groups()
    try:
        since = datetime.fromisoformat(moment + (offset or "Z")) - _EPOCH
    except ValueError:
        return None
    return (since.days * 86_400 + since.seconds) * 10**9 + _fraction_ns(fraction)


def _seconds_ns(text: str) -> int | None:
    match = _SECONDS.fullmatch(text)
    return None if match is None else int(match[1]) * 10**9 + _fraction_ns(match[2])


def _fraction_ns(digits: str | None) -> int:
    return int(f"{digits or 0:0<9}"[:9])


_CSV_FORMATS: Final = (
    _CsvFormat(
        "Azure",
        ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
        _azure_ns,
        "2023-11-16 18:15:46.6805900",
    ),
    _CsvFormat("BurstGPT", ("Timestamp", "Request tokens", "Response tokens"), _seconds_ns, "45.5"),
)


class _MooncakeRow(Struct):
    timestamp: Annotated[float, Meta(ge=0, le=1e15)]
    input_length: Annotated[int, Meta(ge=0, le=_MAX_TOKENS)]
    output_length: Annotated[int, Meta(ge=0, le=_MAX_TOKENS)]


_mooncake = msgspec.json.Decoder(_MooncakeRow)
_EXPECTED: Final = (
    f"expected the columns {', '.join(_CSV_FORMATS[0].columns)} (Azure) or "
    f"{', '.join(_CSV_FORMATS[1].columns)} (BurstGPT), or JSON Lines with "
    f"{', '.join(_MooncakeRow.__struct_fields__)} (Mooncake)"
)
