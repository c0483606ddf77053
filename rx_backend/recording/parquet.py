"""Many recordings as one table in a Parquet file; needs pyarrow, the extra ``parquet``."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from rx_backend.errors import InvalidArgument
from rx_backend.protocols import FinishReason, LLMEngineOutput
from rx_backend.recording.files import AnyPath, Source, read_recordings
from rx_backend.recording.format import (
    FORMAT,
    VERSION,
    RecordingError,
    check_version,
    chunk_json,
    chunk_of,
)
from rx_backend.recording.model import Ending, RecordedRequest, Recording, TimedChunk

__all__ = ("from_parquet", "to_parquet")

# In the order of the table; the types are pyarrow's names.
_COLUMNS: Final = {
    "recording": "int32",
    "request_id": "string",
    "model": "string",
    "mode": "string",
    "prompt_tokens": "int64",
    "prompt_token_ids": "list<uint32>",
    "end": "string",
    "end_ms": "float64",
    "error_kind": "string",
    "error_message": "string",
    "time_ms": "float64",
    "token_ids": "list<uint32>",
    "text": "string",
    "log_probs": "list<float64>",
    "finish_reason": "string",
    "more": "string",
}
_ROWS_PER_GROUP: Final = 65_536


def to_parquet(recordings: Source, path: AnyPath) -> None:
    """
    Write recordings as a table with a row for each chunk, replacing what is there.

    Columns: ``recording`` counts the recordings from 0. ``request_id``, ``model``, ``mode``,
    ``prompt_tokens``, ``end``, ``end_ms``, ``error_kind`` and ``error_message`` are the same in
    all rows of one, and cost next to nothing; ``prompt_token_ids`` stands in its first row.
    ``time_ms``, ``token_ids``, ``text``, ``log_probs`` and ``finish_reason`` are the chunk's, and
    ``more`` has what else it holds, as JSON. A recording without chunks has one row, without
    ``time_ms``.

    Args:
        recordings: What :func:`read_recordings` takes.
        path: The file.

    Raises:
        ImportError: pyarrow is not installed.
        OSError: The file can't be written; what was there before stays.

    >>> import tempfile
    >>> from pathlib import Path
    >>> recording = Recording(
    ...     request_id="r1",
    ...     chunks=[TimedChunk(15.5, LLMEngineOutput.token(7))],
    ...     end=Ending(20.0, "error", "Disconnected", "peer gone"),
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     to_parquet([recording], Path(folder, "runs.parquet"))
    ...     from_parquet(Path(folder, "runs.parquet")) == [recording]
    True
    """
    arrow, parquet = _pyarrow()
    fields = [(name, _type(arrow, kind)) for name, kind in _COLUMNS.items()]
    schema = arrow.schema(fields, metadata={"format": FORMAT, "version": str(VERSION)})
    whole = Path(path)
    part = whole.with_name(f"{whole.name}.part")
    try:
        with parquet.ParquetWriter(str(part), schema) as writer:
            for rows in _in_groups(_rows(read_recordings(recordings))):
                writer.write_table(arrow.Table.from_pylist(rows, schema=schema))
        part.replace(whole)
    finally:
        part.unlink(missing_ok=True)


def from_parquet(path: AnyPath) -> list[Recording]:
    """
    Read the recordings of a file that :func:`to_parquet` wrote, equal to what was written.

    Raises:
        ImportError: pyarrow is not installed.
        RecordingError: It can't be read, or is no such file; names the row and what was expected.
    """
    arrow, parquet = _pyarrow()
    recordings: dict[int, Recording] = {}
    number = 0
    try:
        with parquet.ParquetFile(str(path)) as file:
            _check_schema(path, file.schema_arrow)
            for batch in file.iter_batches(columns=list(_COLUMNS)):
                for row in batch.to_pylist():
                    number += 1
                    _read_row(row, recordings)
    except InvalidArgument as error:
        if isinstance(error, RecordingError):
            raise
        raise RecordingError(path, None, f"row {number}: {error.message}") from None
    except (OSError, arrow.ArrowException) as error:
        raise RecordingError(path, None, f"can't be read: {error}") from error
    return list(recordings.values())


def _rows(recordings: Iterable[Recording]) -> Iterator[dict[str, Any]]:
    for number, recording in enumerate(recordings):
        end = recording.end
        row: dict[str, Any] = {
            "recording": number,
            **{name: getattr(recording, name) for name in RecordedRequest.__struct_fields__},
        }
        if end is not None:
            row |= {
                "end": end.how,
                "end_ms": end.time_ms,
                "error_kind": end.error_kind,
                "error_message": end.message,
            }
        if not recording.chunks:
            yield row
        for timed in recording.chunks:
            yield row | _chunk_columns(timed)
            row["prompt_token_ids"] = None


def _chunk_columns(timed: TimedChunk) -> dict[str, Any]:
    chunk = timed.chunk
    reason = chunk.finish_reason
    rest = chunk_json(replace(chunk, token_ids=[], text=None, log_probs=None, finish_reason=None))
    return {
        "time_ms": timed.time_ms,
        "token_ids": chunk.token_ids,
        "text": chunk.text,
        "log_probs": chunk.log_probs,
        "finish_reason": None if reason is None else str(reason),
        "more": None if rest == b"{}" else rest.decode(),
    }


def _in_groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    for row in rows:
        group.append(row)
        if len(group) == _ROWS_PER_GROUP:
            yield group
            group = []
    yield group


def _read_row(row: dict[str, Any], recordings: dict[int, Recording]) -> None:
    recording = recordings.get(row["recording"])
    if recording is None:
        known = {name: row[name] for name in RecordedRequest.__struct_fields__}
        recording = recordings[row["recording"]] = Recording(**known, end=_ending(row))
    if row["time_ms"] is not None:
        recording.chunks.append(TimedChunk(row["time_ms"], _chunk(row)))


def _ending(row: dict[str, Any]) -> Ending | None:
    if row["end"] is None:
        return None
    fields = {name: row[name] for name in ("end", "error_kind")}
    fields |= {"time_ms": row["end_ms"], "message": row["error_message"]}
    try:
        return msgspec.convert(fields, Ending)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"end: {error}") from None


def _chunk(row: dict[str, Any]) -> LLMEngineOutput:
    chunk = LLMEngineOutput()
    if row["more"] is not None:
        try:
            more = msgspec.json.decode(row["more"], type=dict[str, Any])
        except ValueError as error:
            raise InvalidArgument(f"more: expected a JSON object: {error}") from None
        chunk = chunk_of(more)
    chunk.token_ids = row["token_ids"] or []
    chunk.text = row["text"]
    chunk.log_probs = row["log_probs"]
    if row["finish_reason"] is not None:
        chunk.finish_reason = FinishReason.parse(row["finish_reason"])
    return chunk


def _check_schema(path: AnyPath, schema: Any) -> None:
    metadata: dict[bytes, bytes] = schema.metadata or {}
    version = metadata.get(b"version")
    # Other programs that write the table again may leave the version out.
    if version is not None:
        try:
            check_version(int(version) if version.isdigit() else version)
        except InvalidArgument as error:
            raise RecordingError(path, None, error.message) from None
    missing = [name for name in _COLUMNS if name not in schema.names]
    if missing:
        raise RecordingError(
            path, None, f"expected the columns of to_parquet, missing: {', '.join(missing)}"
        )


def _type(arrow: Any, kind: str) -> Any:
    if kind.startswith("list<"):
        return arrow.list_(_type(arrow, kind[5:-1]))
    return getattr(arrow, kind)()


def _pyarrow() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ImportError(
            "Parquet files need the package pyarrow: pip install 'rx-backend[parquet]'"
        ) from error
