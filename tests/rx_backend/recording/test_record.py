"""`rx_backend.recording.record`: a stream is kept with its timing, and never disturbed."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import AsyncGenerator, Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from reactivex import operators as ops

from operators import fuse
from operators.authoring import Stage, operator
from rx_backend.errors import Disconnected, InvalidArgument
from rx_backend.pipeline import standard_pipeline
from rx_backend.protocols import Annotated, FinishReason, LLMEngineOutput, SamplingOptions
from rx_backend.recording import (
    Ending,
    Recording,
    ReplayEngine,
    TimedChunk,
    read_recording,
    read_recordings,
    record,
    recorder,
    stream_recorder,
)
from rx_backend.testing import Marbles, run_virtual
from tests.diagrams import read_diagrams
from tests.engines import ScriptedEngine, adapter_of, collect, request, settle, stop, virtual
from tests.full_disk import disk_with
from tests.logs import capture_logs
from tests.operators._help import LIVES, Life
from tests.rx_backend.recording._help import recording_stream, token


def the_one_in(folder: Path) -> Recording:
    (recording,) = read_recordings(folder)
    return recording


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


# Alone.


def test_the_diagram_is_executed(tmp_path: Path) -> None:
    """Items come out when they came in."""
    values = {"a": token(1), "b": stop()}
    (diagram,) = read_diagrams(record.__doc__)
    diagram.play(Marbles(values), record(tmp_path))


@pytest.mark.rows("S1")
@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.__name__)
@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, Ending(3.0, "completed")),
        ({"error": LookupError("gone")}, Ending(3.0, "error", "Unknown", "gone")),
        ({"error": Disconnected("peer")}, Ending(3.0, "error", "Disconnected", "peer")),
        ({"ends": False, "take": 2}, Ending(3.0, "dropped")),
        ({"take": 3}, Ending(4.0, "completed")),
    ],
)
def test_every_way_to_run_a_stream_is_recorded_alike(
    life: Life,
    tmp_path: Path,
    how: dict[str, Any],
    expected: Ending,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pushed or pulled, items pass as they are, and the file has them and the end."""
    items = [token(1), token(2)] + [stop()] * (how.get("take") == 3)
    clock = iter([0.0, 0.001, 0.002, 0.003, 0.004]).__next__
    monkeypatch.setattr(recorder, "time", SimpleNamespace(monotonic=clock))
    seen = life(items, record(tmp_path), **how)
    assert list(map(id, seen.items)) == list(map(id, items))
    assert seen == life(items, **how)
    timed = [TimedChunk(float(n), item) for n, item in enumerate(items, 1)]
    assert the_one_in(tmp_path) == Recording(chunks=timed, end=expected)
    assert (tmp_path / "stream.jsonl").exists()


@virtual
async def test_later_changes_of_a_chunk_are_not_recorded(tmp_path: Path) -> None:
    """The consumer of a chunk may change it."""

    async def chunks() -> AsyncGenerator[LLMEngineOutput]:
        yield LLMEngineOutput([1, 2])
        yield LLMEngineOutput([3])

    async for chunk in fuse(chunks(), [record(tmp_path)]):
        chunk.token_ids.clear()
        chunk.text = "changed"
    assert the_one_in(tmp_path).token_ids == [1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"folder": 7}, "record: folder: expected a path, got 7"),
        ({"folder": "a.jsonl"}, "record: folder: expected a directory, got the file 'a.jsonl'"),
        ({"folder": __file__}, "record: folder: expected a directory, got the file"),
        ({"folder": "a", "prompts": "yes"}, "record: prompts: expected"),
    ],
)
def test_bad_options_are_named(arguments: dict[str, Any], message: str) -> None:
    """When the operator is made, not when a stream starts."""
    with pytest.raises((InvalidArgument, TypeError, ValueError), match=message):
        record(**arguments)


# In a pipeline.


@pytest.mark.parametrize("in_front", [False, True])
@virtual
async def test_a_recording_in_a_pipeline(tmp_path: Path, in_front: bool) -> None:
    """Request, chunks with virtual times, and a clean end, before and after the pipeline."""
    engine = ScriptedEngine(0.01, token(7), 0.0123456, {"token_ids": [8], "new": 1}, stop())
    await collect(await recording_stream(engine, tmp_path, in_front=in_front))
    header = '{"format":"rx-backend-recording","version":1,"request_id":"r1","model":"mock",'
    assert (tmp_path / "r1.jsonl").read_text().splitlines() == [
        header + '"mode":"agg","prompt_tokens":3}',
        '{"time_ms":10.0,"chunk":{"token_ids":[7]}}',
        '{"time_ms":22.346,"chunk":{"new":1,"token_ids":[8]}}',
        '{"time_ms":22.346,"chunk":{"finish_reason":"stop"}}',
        '{"time_ms":22.346,"end":"completed"}',
    ]


@virtual
async def test_prompts_are_recorded_on_demand(tmp_path: Path) -> None:
    """The token ids of a prompt are written where that is asked for."""
    await collect(await recording_stream(ScriptedEngine(stop()), tmp_path, prompts=True))
    assert the_one_in(tmp_path).prompt_token_ids == request().token_ids


async def _close(stream: Any) -> None:
    await stream.aclose()


async def _lose(stream: Any) -> None:
    del stream


@pytest.mark.rows("S7")
@pytest.mark.parametrize("leave", [_close, _lose])
@pytest.mark.parametrize("in_front", [False, True])
@virtual
async def test_a_drop_is_recorded_at_once(
    tmp_path: Path, leave: Callable[[Any], Any], in_front: bool
) -> None:
    """Closed or lost: the file is complete within the iteration."""
    engine = ScriptedEngine(0.01, token(1), 100, stop())
    owner = [await recording_stream(engine, tmp_path, in_front=in_front)]
    await anext(owner[0])
    await leave(owner.pop())
    gc.collect()
    await settle()
    recording = the_one_in(tmp_path)
    assert (recording.token_ids, recording.end) == ([1], Ending(10.0, "dropped"))


@pytest.mark.rows("E3", "S7")
@pytest.mark.parametrize("ended", [(), (0,), (1,), (1, 0)], ids=str)
@pytest.mark.parametrize("in_front", [False, True])
@virtual
async def test_a_drop_with_an_open_answer_is_one(
    tmp_path: Path, ended: tuple[int, ...], in_front: bool
) -> None:
    """Of two answers both have to end; the replay cancels those that were open."""
    begun = [LLMEngineOutput([1], index=0), LLMEngineOutput([2], index=1)]
    ends = [LLMEngineOutput(finish_reason=FinishReason.STOP, index=index) for index in ended]
    asked = replace(request(), sampling_options=SamplingOptions(n=2))
    engine = ScriptedEngine(*begun, *ends, 100, stop())
    async with await recording_stream(engine, tmp_path, in_front=in_front, asked=asked) as stream:
        for _ in range(2 + len(ended)):
            await anext(stream)
    how = "completed" if len(ended) == 2 else "dropped"
    assert the_one_in(tmp_path).end == Ending(0.0, how)
    replayed = await collect(await adapter_of(ReplayEngine(tmp_path)).generate(asked))
    reasons = {
        item.data.index or 0: str(item.data.finish_reason)
        for item in replayed
        if item.data and item.data.finish_reason
    }
    assert reasons == {index: "stop" if index in ended else "cancelled" for index in range(2)}


@virtual
async def test_items_without_a_chunk_are_omitted(tmp_path: Path) -> None:
    """A heartbeat is not a chunk; a stream of nothing else has no terminal either."""

    @operator
    def beat() -> Stage[Any, Any]:
        yield
        while True:
            yield Annotated(event="heartbeat")

    pipeline = standard_pipeline.with_operators(beat(), record(tmp_path))
    adapter = adapter_of(ScriptedEngine(token(1), stop()), pipeline=pipeline)
    items = await collect(await adapter.generate(request()))
    assert [item.event for item in items] == ["heartbeat", "heartbeat", "error"]
    recording = the_one_in(tmp_path)
    assert (recording.chunks, recording.end) == ([], Ending(0.0, "completed"))


@virtual
async def test_a_stream_is_on_disk_up_to_its_buffer(tmp_path: Path) -> None:
    """While it runs, the file has all but the last lines."""
    engine = ScriptedEngine(*(token(n) for n in range(500)), stop())
    stream = await recording_stream(engine, tmp_path)
    for _ in range(400):
        await anext(stream)
    so_far = the_one_in(tmp_path)
    assert 200 <= len(so_far.chunks) < 400
    assert so_far.end is None
    await collect(stream)
    assert len(the_one_in(tmp_path).chunks) == 501


@virtual
async def test_a_failed_set_up_is_not_recorded(tmp_path: Path) -> None:
    """A refused request has no recording."""
    with pytest.raises(InvalidArgument):
        await recording_stream(ScriptedEngine(stop(), setup=[ValueError("full")]), tmp_path)
    assert names_in(tmp_path) == []


# A failure costs the recording, and nothing else.


async def warning_of(
    folder: Path, request_id: str = "r1", after_each: Callable[[], object] = lambda: None
) -> Any:
    """Record a stream that must come whole, and return the one warning."""
    engine = ScriptedEngine(token(1), token(2), token(3), stop())
    with capture_logs() as logs:
        stream = await recording_stream(engine, folder, request_id)
        tokens: list[list[int]] = []
        async for item in stream:
            assert item.data is not None
            tokens.append(item.data.token_ids)
            after_each()
    assert tokens == [[1], [2], [3], []]
    (warning,) = [log for log in logs if log["log_level"] == "warning"]
    assert (warning["event"], warning["request_id"]) == ("recording failed", request_id)
    return warning


@virtual
async def test_a_failing_disk_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, at once or in mid-stream, a folder that can't be made, and a file that is removed."""
    with disk_with(0):
        for size in (8192, 0):
            monkeypatch.setattr(stream_recorder, "_BUFFER_BYTES", size)
            assert (await warning_of(tmp_path))["reason"] == "File too large"
    assert names_in(tmp_path) == []
    with disk_with(180):
        assert (await warning_of(tmp_path))["path"] == str(tmp_path / "r1.jsonl")
    part = the_one_in(tmp_path)
    assert (part.request_id, part.token_ids, part.end) == ("r1", [1], None)
    inside, gone = tmp_path / "r1.jsonl" / "inside", tmp_path / "gone"
    warning = await warning_of(inside)
    assert (warning["path"], warning["reason"]) == (str(inside), "Not a directory")
    warning = await warning_of(gone, "r1", partial((gone / "r1.jsonl").unlink, missing_ok=True))
    assert (warning["reason"], names_in(gone)) == ("No such file or directory", [])


@pytest.mark.rows("P10")
@virtual
async def test_text_that_can_not_be_encoded_is_repaired(tmp_path: Path) -> None:
    """Half of a surrogate pair, in an id, a text, a key or an error, costs nothing else."""
    cut = "cut \ud83d"
    chunks = [
        LLMEngineOutput([1], text=cut),
        LLMEngineOutput([2], text=cut, log_probs=[float("-inf")]),
        LLMEngineOutput([3], engine_data={cut: {"in": [cut, 1]}}),
        LLMEngineOutput([4], unknown={cut: (cut,)}),
    ]
    engine = ScriptedEngine(*chunks, Disconnected(cut))
    stream = await recording_stream(engine, tmp_path, cut)
    with capture_logs() as logs:
        items = await collect(stream)
    assert items[0].data is not None
    assert items[0].data.text == cut
    assert "recording failed" not in [log["event"] for log in logs]
    recording, repaired = the_one_in(tmp_path), "cut \ufffd"
    assert (recording.request_id, recording.token_ids) == (repaired, [1, 2, 3, 4])
    first, second, third, fourth = (timed.chunk for timed in recording.chunks)
    assert (first.text, second.text, second.log_probs) == (repaired, repaired, [float("-inf")])
    assert third.engine_data == {repaired: {"in": [repaired, 1]}}
    assert fourth.unknown == {repaired: [repaired]}
    assert recording.end is not None
    assert recording.end.message == repaired


@virtual
async def test_a_chunk_that_json_cannot_hold_ends_the_recording(tmp_path: Path) -> None:
    """What came before it is kept, without an end; the stream is not disturbed."""
    odd = LLMEngineOutput([2], engine_data={"handle": object()})
    engine = ScriptedEngine(token(1), odd, token(3), stop())
    with capture_logs() as logs:
        items = await collect(await recording_stream(engine, tmp_path))
    assert len(items) == 4
    assert [log["event"] for log in logs if log["log_level"] == "warning"] == ["recording failed"]
    recording = the_one_in(tmp_path)
    assert (recording.token_ids, recording.end) == ([1], None)
    assert (tmp_path / "r1.jsonl").read_bytes().endswith(b"}\n")
    with capture_logs() as logs, disk_with(0):
        await collect(await recording_stream(engine, tmp_path / "full"))
    assert [log["event"] for log in logs if log["log_level"] == "warning"] == ["recording failed"]


@pytest.mark.parametrize(("free_bytes", "kept"), [(0, []), (180, [[1]])])
@virtual
async def test_after_a_full_disk_nothing_more_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_bytes: int, kept: list[list[int]]
) -> None:
    """Not even if there is room again: the chunks that were not written would be missing."""
    monkeypatch.setattr(stream_recorder, "_BUFFER_BYTES", 0)
    stream = await recording_stream(ScriptedEngine(token(1), token(2), stop()), tmp_path)
    with capture_logs(), disk_with(free_bytes):
        await anext(stream)
        await anext(stream)
    assert len(await collect(stream)) == 1
    assert [read_recording(tmp_path / name).token_ids for name in names_in(tmp_path)] == kept


@virtual
async def test_a_prompt_that_json_cannot_hold_costs_only_the_recording(tmp_path: Path) -> None:
    """The header can't be written, and so nothing is."""
    asked = replace(request(), token_ids=[object()])
    engine = ScriptedEngine(token(1), stop())
    with capture_logs() as logs:
        stream = await recording_stream(engine, tmp_path, asked=asked, prompts=True)
        assert len(await collect(stream)) == 2
    assert [log["event"] for log in logs if log["log_level"] == "warning"] == ["recording failed"]
    assert names_in(tmp_path) == []


@virtual
async def test_an_error_item_without_a_typed_error_is_recorded(tmp_path: Path) -> None:
    """By its comment; and the folder is made, with those above it."""
    folder = tmp_path / "runs" / "today"
    failed = Annotated[LLMEngineOutput](event="error", comment=["no", "more"])
    pipeline = standard_pipeline.with_operators(ops.map(lambda _: failed), record(folder))
    adapter = adapter_of(ScriptedEngine(token(1), stop()), pipeline=pipeline)
    await collect(await adapter.generate(request()))
    end = the_one_in(folder).end
    assert end is not None
    assert (end.outcome, end.error_kind, end.message) == ("error", "Unknown", "no; more")


# One file a stream.


@settings(max_examples=30)
@given(
    request_id=st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
    | st.sampled_from(["../../up", "..", ".", "a/b", "\0", "l" * 5000, "é" * 200])
)
def test_a_client_can_not_choose_the_path(request_id: str) -> None:
    """Whatever the id is, its file is one more in the folder, and has the whole id in it."""

    async def main(folder: Path) -> None:
        await collect(await recording_stream(ScriptedEngine(stop()), folder, request_id))

    with tempfile.TemporaryDirectory() as outer:
        folder = Path(outer, "runs")
        run_virtual(main(folder))
        (file,) = folder.iterdir()
        assert list(Path(outer).iterdir()) == [folder]
        assert len(file.name.encode()) < 200
        assert the_one_in(folder).request_id == request_id


@settings(max_examples=30)
@given(
    ids=st.lists(st.sampled_from("ab"), min_size=2, max_size=5),
    order=st.lists(st.integers(0, 4), max_size=20),
    size=st.sampled_from([0, 60, 8192]),
)
def test_streams_never_share_a_file(ids: list[str], order: list[int], size: int) -> None:
    """However streams of one id overlap, each has a whole recording; none replaces another."""

    async def main(folder: Path) -> None:
        scripts = [[token(n * 10 + k) for k in range(4)] for n in range(len(ids))]
        streams = [
            await recording_stream(ScriptedEngine(*script, stop()), folder, request_id)
            for script, request_id in zip(scripts, ids, strict=True)
        ]
        for n in order:
            await anext(streams[n % len(ids)], None)
        for stream in streams:
            await collect(stream)

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream_recorder, "_BUFFER_BYTES", size)
        run_virtual(main(Path(folder)))
        found = [(one.request_id, one.token_ids) for one in read_recordings(folder)]
        whole = [(name, list(range(n * 10, n * 10 + 4))) for n, name in enumerate(ids)]
        assert sorted(found) == sorted(whole)


@virtual
async def test_both_parts_of_a_migrated_request_are_kept(tmp_path: Path) -> None:
    """They stand in the order in which they were recorded, and the first is as it was."""
    await collect(await recording_stream(ScriptedEngine(token(1), stop()), tmp_path))
    first = (tmp_path / "r1.jsonl").read_bytes()
    for n in (2, 3):
        await collect(await recording_stream(ScriptedEngine(token(n), stop()), tmp_path))
    assert [one.token_ids for one in read_recordings(tmp_path)] == [[1], [2], [3]]
    assert (tmp_path / "r1.jsonl").read_bytes() == first
