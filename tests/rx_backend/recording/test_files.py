"""`rx_backend.recording`: files are read as they were written, also by later versions."""

from __future__ import annotations

import math
import os
import pickle
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from rx_backend.errors import Disconnected, InvalidArgument, Unknown
from rx_backend.protocols import FinishReason, LLMEngineOutput, TopLogprob, convert_output
from rx_backend.recording import (
    Ending,
    Recording,
    RecordingError,
    TimedChunk,
    json_lines,
    read_recording,
    read_recordings,
)
from tests.logs import capture_logs
from tests.rx_backend.recording._help import GOLDEN, recorded, recordings, token, write_recording
from tests.wire import decode_output, encode

HEADER = '{"format":"rx-backend-recording","version":1}'


def written(folder: Path, *lines: str) -> Path:
    path = folder / "made.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_version_1_reads() -> None:
    """A file of version 1 means what it meant when it was written."""
    log_probs = [-0.5, -math.inf]
    failed = LLMEngineOutput(finish_reason=FinishReason.error("boom"), unknown={"new_key": [1]})
    assert read_recording(GOLDEN) == Recording(
        request_id="r1",
        model="m",
        mode="decode",
        prompt_tokens=2,
        prompt_token_ids=[5, 6],
        chunks=[
            TimedChunk(0.0, LLMEngineOutput()),
            TimedChunk(10.5, token(7)),
            TimedChunk(
                20.001, LLMEngineOutput([8, 9], text="ab", cum_log_probs=-0.5, log_probs=log_probs)
            ),
            TimedChunk(30.25, failed),
        ],
        end=Ending(30.25, "completed"),
    )
    recording = read_recording(GOLDEN.with_name("version_1_error.jsonl"))
    assert recording == Recording(end=Ending(5.0, "error", "Disconnected", "peer gone"))
    assert recording.end is not None
    error = recording.end.error
    assert isinstance(error, Disconnected)
    assert error.message == "peer gone"
    assert recording.end.error is not error


@pytest.mark.parametrize("name", ["version_1.jsonl", "version_1_error.jsonl"])
def test_version_1_is_written(tmp_path: Path, name: str) -> None:
    """Writing what was read gives the same bytes."""
    golden = GOLDEN.with_name(name)
    write_recording(read_recording(golden), tmp_path / name)
    assert (tmp_path / name).read_bytes() == golden.read_bytes()


@given(recording=recordings())
def test_any_recording_reads_as_it_was_written(recording: Recording) -> None:
    """All fields of all chunks, keys that this version does not know, times and the end."""
    with tempfile.TemporaryDirectory() as folder:
        write_recording(recording, Path(folder, "a.jsonl"))
        assert read_recordings(folder) == [recording]


def test_a_file_that_was_edited_on_windows_reads(tmp_path: Path) -> None:
    """It may begin with a byte order mark, and its lines end in CRLF."""
    for golden in GOLDEN.parent.glob("*.jsonl"):
        edited = tmp_path / golden.name
        edited.write_bytes(b"\xef\xbb\xbf" + golden.read_bytes().replace(b"\n", b"\r\n"))
        assert read_recordings(tmp_path)[-1] == read_recording(golden)
        edited.unlink()


def test_log_probabilities_may_be_infinite(tmp_path: Path) -> None:
    """What JSON has no number for is read back as that number, and null as minus infinity."""
    top = TopLogprob(rank=1, token_id=7, logprob=-math.inf)
    chunk = LLMEngineOutput(
        [7], cum_log_probs=-math.inf, log_probs=[math.inf, -1.0], top_logprobs=[[top]]
    )
    nan = LLMEngineOutput([8], cum_log_probs=math.nan)
    infinite = LLMEngineOutput([7], log_probs=[math.inf])
    likeliest = LLMEngineOutput([7], top_logprobs=[[replace(top, logprob=math.inf)]])
    chunks = [TimedChunk(1.0, each) for each in (nan, chunk, infinite, likeliest)]
    write_recording(Recording(chunks=chunks), tmp_path / "a.jsonl")
    first, *others = read_recording(tmp_path / "a.jsonl").chunks
    assert math.isnan(first.chunk.cum_log_probs or 0.0)
    assert [each.chunk for each in others] == [chunk, infinite, likeliest]
    chunk.log_probs, chunk.cum_log_probs = [-math.inf, -1.0], None
    assert decode_output(encode(chunk)) == chunk
    assert decode_output('{"log_probs": null, "cum_log_probs": null}') == LLMEngineOutput()
    for name, value in (("log_probs", [[None]]), ("log_probs", {1: 2}), ("top_logprobs", [None])):
        with pytest.raises(InvalidArgument, match=rf"\$\.{name}"):
            convert_output({name: value})


def test_later_versions_may_add_keys(tmp_path: Path) -> None:
    """Keys that are not known are kept in chunks, and ignored elsewhere; so are blank lines."""
    path = written(
        tmp_path,
        '{"format":"rx-backend-recording","version":1,"later":{}}',
        '{"time_ms":1,"chunk":{"token_ids":[1],"later":2},"later":3}',
        "",
        '{"time_ms":2,"end":"error","error_kind":"LaterKind","message":"m","later":4}',
    )
    recording = read_recording(path)
    assert recording.chunks == [TimedChunk(1.0, LLMEngineOutput([1], unknown={"later": 2}))]
    assert recording.end is not None
    assert type(recording.end.error) is Unknown


def test_a_file_cut_anywhere_reads_up_to_the_cut(tmp_path: Path) -> None:
    """Of a process that was killed while it wrote, every whole line is there."""
    whole = GOLDEN.read_bytes()
    chunks = read_recording(GOLDEN).chunks
    path = tmp_path / "cut.jsonl"
    for size in range(whole.index(b"\n") + 1, len(whole) - 1):
        path.write_bytes(whole[:size])
        recording = read_recording(path)
        lines = whole[: size + 1].count(b"\n") - 1
        has_end = lines > len(chunks)
        assert recording.chunks == chunks[:lines]
        assert (recording.end is not None) == has_end
        assert recording.request_id == "r1"


@pytest.mark.parametrize(
    ("lines", "number", "expected"),
    [
        ([], 1, "got an empty file"),
        (["{"], 1, "expected a JSON object"),
        (["[]"], 1, "$: expected object, got array"),
        (['{"time_ms":1,"chunk":{}}'], 1, "expected the header"),
        (['{"format":"rx-backend-recording"}'], 1, "expected the header"),
        (['{"format":"another","version":1}'], 1, "expected the header"),
        ([HEADER.replace("1}", '2,"model":7}')], 1, "$.version: expected at most 1, got 2"),
        ([HEADER.replace("}", ',"model":7}')], 1, "$.model: expected str | null, got int"),
        ([HEADER, "nonsense"], 2, "expected a JSON object"),
        ([HEADER, '{"time_ms":1}'], 2, "expected a line with chunk or end"),
        ([HEADER, '{"chunk":{}}'], 2, "$: object missing required field time_ms"),
        ([HEADER, '{"time_ms":-1,"chunk":{}}'], 2, "$.time_ms: expected float >= 0"),
        ([HEADER, '{"time_ms":1,"chunk":7}'], 2, "$.chunk: expected object | null, got int"),
        ([HEADER, '{"time_ms":1,"chunk":{"token_ids":[1,-1]}}'], 2, "$.chunk.token_ids[1]: expec"),
        ([HEADER, '{"time_ms":1,"chunk":{"log_probs":["x"]}}'], 2, "$.chunk.log_probs[0]: expec"),
        ([HEADER, '{"time_ms":1,"end":"vanished"}'], 2, "$.end: invalid enum value 'vanished'"),
        ([HEADER, '{"time_ms":1,"end":"dropped"}'] * 2, 3, "expected nothing after the end"),
    ],
)
def test_invalid_input_is_named(
    tmp_path: Path, lines: list[str], number: int, expected: str
) -> None:
    """The error names the file, the line, and what was expected there."""
    path = written(tmp_path, *lines)
    with pytest.raises(RecordingError) as caught:
        read_recording(path)
    assert (caught.value.path, caught.value.line) == (str(path), number)
    assert caught.value.message.startswith(f"recording {path}, line {number}: ")
    assert expected in caught.value.message


@pytest.mark.parametrize("read", [read_recording, read_recordings])
@pytest.mark.parametrize("value", [None, 5, b"r1.jsonl"])
def test_an_invalid_path_is_rejected(read: Callable[[Any], object], value: object) -> None:
    """By name."""
    with pytest.raises(InvalidArgument, match="path: expected a path, got"):
        read(value)


def test_recordings_come_from_a_file_or_a_directory(tmp_path: Path) -> None:
    """In the order of names; what is missing is named."""
    b, c = (recorded(1.0, request_id=name) for name in "bc")
    runs = tmp_path / "runs"
    (runs / "deep").mkdir(parents=True)
    with pytest.raises(RecordingError, match=r"expected \.jsonl files"):
        read_recordings(runs)
    write_recording(b, runs / "deep" / "b.jsonl")
    write_recording(c, runs / "e.jsonl")
    assert read_recordings(str(runs)) == [b, c]
    assert read_recordings(runs / "e.jsonl") == [c]
    with pytest.raises(RecordingError, match=r"none\.jsonl: can't be read: No such") as caught:
        read_recordings(tmp_path / "none.jsonl")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.line) == (RecordingError, str(caught.value), None)


BAD = {
    "empty": b"",
    "blank": b"\n \n",
    "cut": HEADER.encode()[:20],
    "binary": bytes(range(256)),
    "utf16": HEADER.encode("utf-16"),
    "newer": HEADER.replace("1}", "2}").encode(),
    "other": b'{"timestamp": 0, "input_length": 1, "output_length": 1}\n',
    "broken": f"{HEADER}\n\ufffd".encode()[:-1] + b'\n{"time_ms":1,"end":"dropped"}\n',
    "deep": f'{HEADER}\n{{"time_ms":1,"chunk":{{"engine_data":{"[" * 9999}\n'.encode(),
    "nested": f'{HEADER}\n{{"time_ms":1,"chunk":{{"log_probs":{"[" * 400}{"]" * 400}}}}}\n'.encode(),
}


def test_a_bad_file_is_named_and_skipped(tmp_path: Path) -> None:
    """In a directory; the rest is read. Where the file itself is asked for, it is an error."""
    for name, content in BAD.items():
        (tmp_path / f"{name}.jsonl").write_bytes(content)
    (tmp_path / "dangling.jsonl").symlink_to("nowhere")
    (tmp_path / "folder.jsonl").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    good = [recorded(1.0, request_id=name) for name in ("a", "z")]
    for recording in good:
        write_recording(recording, tmp_path / f"{recording.request_id}.jsonl")
    with capture_logs() as logs:
        assert read_recordings(tmp_path) == good
    assert {log["event"] for log in logs} == {"recording skipped"}
    assert sorted(Path(log["path"]).stem for log in logs) == sorted(BAD)
    assert all(log["path"] in log["reason"] for log in logs)
    for name in BAD:
        with pytest.raises(RecordingError):
            read_recordings(tmp_path / f"{name}.jsonl")


def test_an_endless_line_is_not_read_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line beyond the limit is an error that says so, with or without a newline."""
    monkeypatch.setattr(json_lines, "_MAX_BYTES", 2**20)
    for end in ("", "\n"):
        path = written(tmp_path, HEADER)
        with path.open("a") as file:
            file.write("x" * (2**20 + 1) + end)
        with pytest.raises(RecordingError, match="line 2: expected a line of at most 1 MiB"):
            read_recording(path)


@settings(max_examples=300)
@given(cut=st.integers(0, 600), junk=st.binary(max_size=3), skip=st.integers(0, 3))
def test_a_damaged_file_is_read_or_rejected(cut: int, junk: bytes, skip: int) -> None:
    """Wherever bytes are lost, added or changed, nothing but the typed error is raised."""
    whole = GOLDEN.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.jsonl")
        path.write_bytes(whole[:cut] + junk + whole[cut + skip :])
        with suppress(RecordingError):
            assert isinstance(read_recording(path), Recording)
