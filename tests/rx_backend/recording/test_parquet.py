"""`rx_backend.recording`: recordings as a table, and back."""

from __future__ import annotations

import importlib
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rx_backend.protocols import FinishReason, LLMEngineOutput
from rx_backend.recording import (
    Ending,
    Recording,
    RecordingError,
    TimedChunk,
    from_parquet,
    to_parquet,
)
from tests.rx_backend.recording._help import GOLDEN, recorded, recordings, token

pytestmark = pytest.mark.needs("pyarrow")


def table(path: Path) -> list[dict[str, Any]]:
    parquet: Any = importlib.import_module("pyarrow.parquet")
    return parquet.read_table(path).to_pylist()


def rewrite(path: Path, method: str, *arguments: object) -> None:
    """Call a method of the table in a file, and write what it gives."""
    parquet: Any = importlib.import_module("pyarrow.parquet")
    parquet.write_table(getattr(parquet.read_table(path), method)(*arguments), path)


@settings(max_examples=50)
@given(made=st.lists(recordings(), max_size=3))
def test_recordings_come_back_as_they_were(made: list[Recording]) -> None:
    """Every field of every chunk, empty recordings, prompts and ends."""
    with tempfile.TemporaryDirectory() as folder:
        to_parquet(made, Path(folder, "a.parquet"))
        assert from_parquet(Path(folder, "a.parquet")) == made


def test_the_table_has_a_row_for_each_chunk(tmp_path: Path) -> None:
    """With what is asked for in columns; a recording without chunks has one row too."""
    failed = Recording(request_id="r2", end=Ending(5.0, "error", "Disconnected", "peer gone"))
    path = tmp_path / "a.parquet"
    to_parquet([GOLDEN, failed], path)
    rows = table(path)
    assert [(row["request_id"], row["time_ms"], row["token_ids"]) for row in rows] == [
        ("r1", 0.0, []),
        ("r1", 10.5, [7]),
        ("r1", 20.001, [8, 9]),
        ("r1", 30.25, []),
        ("r2", None, None),
    ]
    assert rows[2]["log_probs"] == [-0.5, -math.inf]
    assert (rows[3]["finish_reason"], rows[3]["more"]) == ("error: boom", '{"new_key":[1]}')
    assert [row["prompt_token_ids"] for row in rows] == [[5, 6], None, None, None, None]
    assert (rows[4]["end"], rows[4]["error_kind"], rows[4]["end_ms"]) == (
        "error",
        "Disconnected",
        5.0,
    )
    assert list(tmp_path.iterdir()) == [path]


def test_more_than_one_row_group(tmp_path: Path) -> None:
    """Long tables are written in parts, and read whole."""
    long = recorded(*(n / 10 for n in range(70_000)))
    to_parquet([long, recorded(1.0)], tmp_path / "a.parquet")
    assert from_parquet(tmp_path / "a.parquet") == [long, recorded(1.0)]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    """Nothing is half written."""
    path = tmp_path / "a.parquet"
    to_parquet(recorded(1.0), path)
    odd = Recording(chunks=[TimedChunk(1.0, LLMEngineOutput(engine_data=object()))])
    with pytest.raises(TypeError):
        to_parquet([recorded(1.0), odd], path)
    assert from_parquet(path) == [recorded(1.0)]
    assert list(tmp_path.iterdir()) == [path]


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    """A file of another kind, a newer version, columns that are missing, a row that is wrong."""
    path = tmp_path / "a.parquet"
    path.write_text("text")
    with pytest.raises(RecordingError, match=r"a\.parquet: can't be read"):
        from_parquet(path)
    to_parquet([recorded(1.0, 2.0)], path)
    rewrite(path, "replace_schema_metadata", {"version": "2"})
    with pytest.raises(RecordingError, match=r"expected at most 1, got 2: .* newer version"):
        from_parquet(path)
    rewrite(path, "replace_schema_metadata", None)
    assert from_parquet(path) == [recorded(1.0, 2.0)]
    arrow: Any = importlib.import_module("pyarrow")
    rewrite(path, "set_column", 15, "more", arrow.array([None, "["]))
    with pytest.raises(RecordingError, match=r"a\.parquet: row 2: more: expected a JSON object"):
        from_parquet(path)
    rewrite(path, "drop_columns", ["more", "text"])
    with pytest.raises(RecordingError, match=r"expected the columns .* missing: text, more"):
        from_parquet(path)
    with pytest.raises(RecordingError, match=r"missing\.parquet: can't be read"):
        from_parquet(tmp_path / "missing.parquet")


def test_without_pyarrow_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The rest of the package works without it."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pyarrow: pip install 'rx-backend\[parquet\]'"):
        to_parquet(recorded(1.0), tmp_path / "a.parquet")
    with pytest.raises(ImportError, match=r"rx-backend\[parquet\]"):
        from_parquet(tmp_path / "a.parquet")


def test_reasons_with_a_message_come_back(tmp_path: Path) -> None:
    """Also an empty one, and one that looks like another reason."""
    reasons = [FinishReason.error(message) for message in ("", "stop", "error: x")]
    chunks = [TimedChunk(0.0, LLMEngineOutput(finish_reason=reason)) for reason in reasons]
    made = Recording(chunks=[TimedChunk(0.0, token(1)), *chunks])
    to_parquet(made, tmp_path / "a.parquet")
    assert from_parquet(tmp_path / "a.parquet") == [made]
