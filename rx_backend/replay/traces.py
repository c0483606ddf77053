"""Traces of production traffic as workloads: Azure, BurstGPT and Mooncake."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, ClassVar, Final, TypeAlias

import msgspec
from msgspec import Meta, Struct, field

from rx_backend.checks import file_path, integer
from rx_backend.errors import InvalidArgument
from rx_backend.recording.json_lines import decode_line, read_lines
from rx_backend.replay.workload import Request

__all__ = ("Trace", "read_trace")

_MAX_LINE: Final = 2**20
_MAX_TOKENS: Final = 10_000_000


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

    Other columns and keys are ignored. Arrivals count from the first request. Rows without output
    tokens, which failed or generated nothing, are skipped and counted. The file is read as requests
    are needed, so rows must be in the order of their times.

    Args:
        path: The file.
        limit: Maximum number of requests, from the start of the file; None for all.

    Raises:
        InvalidArgument: An argument is invalid, or the file can't be read, has none of these
            formats, has no requests, or has an invalid row; the message names file, line and
            column. If the fault is not in the first line, it is raised during iteration.
    """
    return Trace(
        file_path("path", path),
        None if limit is None else integer("limit", limit, low=1, unit="requests"),
    )


class Trace(Iterator[Request]):
    """
    The requests of a trace file, in the order of their arrival.

    Attributes:
        format: ``Azure``, ``BurstGPT`` or ``Mooncake``.
        left_out: Number of skipped rows without output tokens, so far.
    """

    def __init__(self, path: Path, limit: int | None) -> None:
        self.left_out = 0
        self._path = path
        self._line = 1
        lines = self._lines()
        first = next(lines, b"")
        parse = self._json_rows if first.lstrip().startswith(b"{") else self._csv_rows
        self.format, rows = parse(chain((first,), lines))
        self._requests = self._arrivals(islice(self._with_output(rows), limit))

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
                        yield line
        except OSError as error:
            raise InvalidArgument(f"trace {self._path}: can't be read: {error.strerror}") from error

    def _json_rows(self, lines: Iterator[bytes]) -> tuple[str, Iterator[_Row]]:
        return Mooncake.__name__, map(self._json_row, lines)

    def _json_row(self, line: bytes) -> _Row:
        try:
            return decode_line(line, _mooncake)
        except InvalidArgument as error:
            raise self._error(error.message) from None

    def _csv_rows(self, lines: Iterator[bytes]) -> tuple[str, Iterator[_Row]]:
        rows = self._cells(line.decode(errors="replace") for line in lines)
        header = [name.strip() for name in next(rows, ())]
        kind = max(_CSV_FORMATS, key=lambda kind: len({*_columns(kind)} & {*header}))
        for column in _columns(kind):
            if column not in header:
                raise self._error(f"column {column} is missing; {_EXPECTED}")
        places = {column: header.index(column) for column in _columns(kind)}
        return kind.__name__, (self._csv_row(kind, places, cells) for cells in rows)

    def _cells(self, lines: Iterator[str]) -> Iterator[list[str]]:
        try:
            yield from csv.reader(lines)
        except csv.Error as error:
            raise self._error(str(error)) from None

    def _csv_row(
        self, kind: type[Azure | BurstGPT], places: dict[str, int], cells: list[str]
    ) -> _Row:
        fields = {
            column: cells[place].strip() if place < len(cells) else ""
            for column, place in places.items()
        }
        try:
            return msgspec.convert(fields, kind, strict=False)
        except msgspec.ValidationError as error:
            column = str(error).rstrip("`").rpartition("$.")[2]
            expected = f"a whole number from 0 to {_MAX_TOKENS}"
            if column == next(iter(places)):
                expected = f"a time like {kind.like}"
            problem = f"expected {expected}, got {fields[column][:60]!r}"
            raise self._error(f"column {column}: {problem}") from None

    def _with_output(self, rows: Iterator[_Row]) -> Iterator[_Row]:
        for row in rows:
            if row.output:
                yield row
            else:
                self.left_out += 1

    def _arrivals(self, rows: Iterator[_Row]) -> Iterator[Request]:
        start_us: int | None = None
        last_us = 0
        for row in rows:
            time_us = row.time_us
            if start_us is None:
                start_us = last_us = time_us
            if time_us < last_us:
                raise self._error(
                    "expected a time that is not before the last row's: sort the rows"
                )
            last_us = time_us
            yield Request((time_us - start_us) / 1e6, row.prompt, row.output)
        if start_us is None:
            raise InvalidArgument(f"trace {self._path}: has no requests with output tokens")


_Tokens: TypeAlias = Annotated[int, Meta(ge=0, le=_MAX_TOKENS)]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Azure(Struct):
    """A row of an Azure trace; a time without an offset is UTC."""

    time: datetime = field(name="TIMESTAMP")
    prompt: _Tokens = field(name="ContextTokens")
    output: _Tokens = field(name="GeneratedTokens")
    like: ClassVar = "2023-11-16 18:15:46.6805900"

    @property
    def time_us(self) -> int:
        """Its time in µs."""
        time = self.time if self.time.tzinfo else self.time.replace(tzinfo=UTC)
        return (time - _EPOCH) // timedelta(microseconds=1)


class BurstGPT(Struct):
    """A row of a BurstGPT trace, with times in seconds."""

    time: Annotated[float, Meta(ge=0, le=1e12)] = field(name="Timestamp")
    prompt: _Tokens = field(name="Request tokens")
    output: _Tokens = field(name="Response tokens")
    like: ClassVar = "45.5"

    @property
    def time_us(self) -> int:
        """Its time in µs."""
        return round(self.time * 1e6)


class Mooncake(Struct):
    """A row of a Mooncake trace, with times in ms."""

    time: Annotated[float, Meta(ge=0, le=1e15)] = field(name="timestamp")
    prompt: _Tokens = field(name="input_length")
    output: _Tokens = field(name="output_length")

    @property
    def time_us(self) -> int:
        """Its time in µs."""
        return round(self.time * 1e3)


_Row: TypeAlias = Azure | BurstGPT | Mooncake


def _columns(kind: type[Struct]) -> tuple[str, ...]:
    return kind.__struct_encode_fields__


_CSV_FORMATS: Final = (Azure, BurstGPT)
_mooncake = msgspec.json.Decoder(Mooncake)
_EXPECTED: Final = (
    f"expected the columns {', '.join(_columns(Azure))} (Azure) or "
    f"{', '.join(_columns(BurstGPT))} (BurstGPT), or JSON Lines with "
    f"{', '.join(_columns(Mooncake))} (Mooncake)"
)
