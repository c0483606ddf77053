"""`rx_backend.recording.record`: a stream is kept with its timing, and never disturbed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import shutil
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from operators import fuse
from operators.authoring import Stage, operator
from rx_backend.errors import Disconnected, InvalidArgument
from rx_backend.pipeline import standard_pipeline
from rx_backend.protocols import Annotated, LLMEngineOutput
from rx_backend.recording import Ending, Recording, TimedChunk, read_recording, record
from rx_backend.testing import run_docstring_marbles
from tests.operators._help import LIVES, Life
from tests.rx_backend._engines import (
    ScriptedEngine,
    adapter_of,
    collect,
    request,
    settle,
    stop,
    virtual,
)
from tests.rx_backend.recording._help import recording_stream, token


@pytest.fixture(params=LIVES, ids=lambda life: life.__name__)
def life(request: pytest.FixtureRequest) -> Life:
    """Give each way to run a list of operators, in turn."""
    return request.param


# Alone.


def test_the_diagram_is_true(tmp_path: Path) -> None:
    """Items come out when they came in."""
    values = {"a": token(1), "b": stop()}
    run_docstring_marbles(record(tmp_path / "a.jsonl"), record.__doc__, values=values)


@pytest.mark.rows("S1")
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
def test_every_life_is_recorded_alike(
    life: Life, tmp_path: Path, how: dict[str, Any], expected: Ending
) -> None:
    """Pushed or pulled, items pass as they are, and the file has them and the end."""
    items = [token(1), token(2)] + [stop()] * (how.get("take") == 3)
    clock = iter([0.0, 0.001, 0.002, 0.003, 0.004]).__next__
    seen = life(items, record(tmp_path / "a.jsonl", clock=clock), **how)
    assert list(map(id, seen.items)) == list(map(id, items))
    assert seen == life(items, **how)
    timed = [TimedChunk(float(n), item) for n, item in enumerate(items, 1)]
    assert read_recording(tmp_path / "a.jsonl") == Recording(chunks=timed, end=expected)


@virtual
async def test_it_keeps_what_came_not_what_became_of_it(tmp_path: Path) -> None:
    """Whoever gets a chunk may change it."""

    async def chunks() -> AsyncGenerator[LLMEngineOutput]:
        yield LLMEngineOutput([1, 2])
        yield LLMEngineOutput([3])

    async for chunk in fuse(chunks(), [record(tmp_path / "a.jsonl")]):
        chunk.token_ids.clear()
        chunk.text = "changed"
    assert read_recording(tmp_path / "a.jsonl").token_ids == [1, 2, 3]


# In a pipeline.


@pytest.mark.parametrize("in_front", [False, True])
@virtual
async def test_what_a_pipeline_records(tmp_path: Path, in_front: bool) -> None:
    """Request, chunks with virtual times, and a clean end, in front of the pipeline and behind."""
    engine = ScriptedEngine(0.01, token(7), 0.0123456, {"token_ids": [8]}, stop())
    path = tmp_path / "a.jsonl"
    await collect(await recording_stream(engine, path, in_front=in_front))
    header = '{"format":"rx-backend-recording","version":1,"request_id":"r1","model":"mock",'
    assert path.read_text().splitlines() == [
        header + '"mode":"agg","prompt_tokens":3}',
        '{"time_ms":10.0,"chunk":{"token_ids":[7]}}',
        '{"time_ms":22.346,"chunk":{"token_ids":[8]}}',
        '{"time_ms":22.346,"chunk":{"finish_reason":"stop"}}',
        '{"time_ms":22.346,"end":"completed"}',
    ]


async def _close(stream: Any) -> None:
    await stream.aclose()


async def _lose(stream: Any) -> None:
    del stream


async def _stall(stream: Any) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.005):
            await anext(stream)


@pytest.mark.rows("S7")
@pytest.mark.parametrize(("leave", "at_ms"), [(_close, 10.0), (_lose, 10.0), (_stall, 15.0)])
@pytest.mark.parametrize("in_front", [False, True])
@virtual
async def test_a_drop_is_recorded(
    tmp_path: Path, leave: Callable[[Any], Any], at_ms: float, in_front: bool
) -> None:
    """Closed, lost or cancelled in a pull: the file is complete within the turn."""
    engine = ScriptedEngine(0.01, token(1), 100.0, stop())
    owner = [await recording_stream(engine, tmp_path / "a.jsonl", in_front=in_front)]
    await anext(owner[0])
    await leave(owner.pop())
    gc.collect()
    await settle()
    assert read_recording(tmp_path / "a.jsonl").end == Ending(at_ms, "dropped")


@pytest.mark.rows("S6")
@pytest.mark.parametrize("in_front", [False, True])
@virtual
async def test_a_failure_is_recorded(tmp_path: Path, in_front: bool) -> None:
    """With kind, message and time, also where it has become an error item already."""
    engine = ScriptedEngine(token(1), 0.02, Disconnected("peer gone"))
    await collect(await recording_stream(engine, tmp_path / "a.jsonl", in_front=in_front))
    recording = read_recording(tmp_path / "a.jsonl")
    assert recording.token_ids == [1]
    assert recording.end == Ending(20.0, "error", "Disconnected", "peer gone")


@virtual
async def test_items_without_a_chunk_are_left_out(tmp_path: Path) -> None:
    """A heartbeat is no chunk; a stream of nothing else has no terminal either."""

    @operator
    def beat() -> Stage[Any, Any]:
        yield
        while True:
            yield Annotated(event="heartbeat")

    pipeline = standard_pipeline.with_operators(beat(), record(tmp_path / "a.jsonl"))
    adapter = adapter_of(ScriptedEngine(token(1), stop()), pipeline=pipeline)
    items = await collect(await adapter.generate(request()))
    assert [item.event for item in items] == ["heartbeat", "heartbeat", "error"]
    recording = read_recording(tmp_path / "a.jsonl")
    assert (recording.chunks, recording.end) == ([], Ending(0.0, "completed"))


@virtual
async def test_a_stream_is_on_disk_up_to_its_buffer(tmp_path: Path) -> None:
    """While it runs, the file has all but the last lines; without a buffer it has all."""
    adapter = adapter_of(ScriptedEngine(*(token(n) for n in range(500)), stop()))
    for buffer_bytes, on_disk in ((0, range(400, 401)), (2048, range(300, 400))):
        path = tmp_path / f"{buffer_bytes}.jsonl"
        recorder = record(path, buffer_bytes=buffer_bytes)
        stream = await adapter.with_operators(recorder).generate(request())
        for _ in range(400):
            await anext(stream)
        so_far = read_recording(path)
        assert len(so_far.chunks) in on_disk
        assert so_far.end is None
        await collect(stream)
        assert len(read_recording(path).chunks) == 501


# What fails.


async def record_all(path: Path | str, *script: Any, remove: Path | None = None) -> list[list[int]]:
    """Record with no buffer; *remove* a directory after the first chunk."""
    adapter = adapter_of(ScriptedEngine(*script)).with_operators(
        record(path, request_id="r1", buffer_bytes=0)
    )
    tokens: list[list[int]] = []
    async for item in await adapter.generate(request()):
        assert item.data is not None
        tokens.append(item.data.token_ids)
        if remove is not None:
            shutil.rmtree(remove, ignore_errors=True)
    return tokens


@virtual
async def test_a_disk_that_fails_is_logged_once(tmp_path: Path) -> None:
    """From the start or in mid-stream; the stream does not notice."""
    blocked, taken = tmp_path / "file", tmp_path / "taken"
    blocked.write_text("no directory")
    script = token(1), token(2), token(3), stop()
    for path, remove in ((blocked / "a.jsonl", None), (taken / "a.jsonl", taken)):
        with capture_logs() as logs:
            assert await record_all(path, *script, remove=remove) == [[1], [2], [3], []]
        (log,) = [log for log in logs if log["log_level"] == "warning"]
        assert (log["event"], log["request_id"]) == ("recording failed", "r1")
        assert str(path) in log["path"]
        assert log["reason"] in {"Not a directory", "No such file or directory"}
    assert not taken.exists()


@virtual
async def test_a_chunk_that_json_cannot_hold_ends_the_recording(tmp_path: Path) -> None:
    """What came before it is kept, without an end; the stream goes on."""
    odd = LLMEngineOutput([2], engine_data={"handle": object()})
    for buffer_bytes in (0, 8192):
        path = tmp_path / f"{buffer_bytes}.jsonl"
        adapter = adapter_of(ScriptedEngine(token(1), odd, token(3), stop())).with_operators(
            record(path, buffer_bytes=buffer_bytes)
        )
        with capture_logs() as logs:
            items = await collect(await adapter.generate(request()))
        assert len(items) == 4
        warnings = [log["event"] for log in logs if log["log_level"] == "warning"]
        assert warnings == ["recording failed"]
        recording = read_recording(path)
        assert (recording.token_ids, recording.end) == ([1], None)


@operator
def failing_setup() -> Stage[Any, Any]:
    """Raise before there is a first item."""
    if os.name:
        raise InvalidArgument("no table")
    yield


@virtual
async def test_a_set_up_that_fails_has_no_stream(tmp_path: Path) -> None:
    """A refused request has no file; one whose pipeline fails behind was dropped at once."""
    recorder = record(tmp_path / "a.jsonl")
    pipeline = standard_pipeline.insert_before("validate_chunks", recorder).with_operators(
        failing_setup()
    )

    full = ScriptedEngine(stop(), setup=[ValueError("full")])
    with pytest.raises(InvalidArgument):
        await adapter_of(full).with_operators(recorder).generate(request())
    assert files_in(tmp_path) == []
    with pytest.raises(InvalidArgument):
        await adapter_of(ScriptedEngine(stop()), pipeline=pipeline).generate(request())
    recording = read_recording(tmp_path / "a.jsonl")
    assert (recording.chunks, recording.end) == ([], Ending(0.0, "dropped"))


# Where it goes.


def files_in(folder: Path) -> list[str]:
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in files)


@virtual
async def test_each_request_gets_its_file(tmp_path: Path) -> None:
    """By a template or a directory, whatever a client chose as its id."""

    async def run(path: str, request_id: str) -> None:
        await collect(await recording_stream(ScriptedEngine(stop()), path, request_id))

    runs = f"{tmp_path}/runs"
    await run(f"{runs}/{{mode}}/{{model}}-{{request_id}}.jsonl", "r1")
    await run(f"{runs}/", "../../up")
    await run(f"{runs}/{{request_id}}/x", "..")
    await run(runs, "l" * 5000)
    files = files_in(tmp_path)
    assert files[:2] == ["runs/%2E%2E/x", "runs/..%2F..%2Fup.jsonl"]
    assert files[2] == "runs/agg/mock-r1.jsonl"
    assert files[3].startswith("runs/llll")
    assert len(files[3]) < 140
    assert len(files) == 4
    assert read_recording(tmp_path / files[1]).request_id == "../../up"


@virtual
async def test_streams_of_one_operator_are_numbered(tmp_path: Path) -> None:
    """By ``number``; files that are there stay."""
    (tmp_path / "000001.jsonl").write_text("mine")
    recorder = record(f"{tmp_path}/{{number:06}}.jsonl")
    adapter = adapter_of(ScriptedEngine(token(1), stop())).with_operators(recorder)
    for _ in range(6):
        await collect(await adapter.generate(request()))
    assert files_in(tmp_path) == [f"{number:06}.jsonl" for number in range(1, 8)]
    assert (tmp_path / "000001.jsonl").read_text() == "mine"


@virtual
async def test_a_file_is_replaced_but_not_while_it_is_written(tmp_path: Path) -> None:
    """A second stream beside the first gets a name of its own; one after it, the same name."""
    engine = ScriptedEngine(token(1), token(2), stop())
    adapter = adapter_of(engine).with_operators(
        record(tmp_path / "a.jsonl", request_id="r1", buffer_bytes=0)
    )
    streams = [await adapter.generate(request()) for _ in range(3)]
    for stream in streams:
        await anext(stream)
    for stream in streams:
        await collect(stream)
    names = ["a-2.jsonl", "a-3.jsonl", "a.jsonl"]
    for name in names:
        assert read_recording(tmp_path / name).token_ids == [1, 2]
    first = (tmp_path / "a.jsonl").read_bytes()
    await collect(await adapter.generate(request()))
    assert files_in(tmp_path) == names
    assert (tmp_path / "a.jsonl").read_bytes() == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": 7}, "record: path: expected a path, got 7"),
        ({"path": "{user}.jsonl"}, r"expected the placeholders .*, got \{user\}"),
        ({"path": "{request_id.x}"}, r"got \{request_id.x\}"),
        ({"path": "{oops"}, "is no template"),
        ({"path": "{number:x!}"}, "is no template"),
        ({"path": "a", "mode": "both"}, "mode"),
        ({"path": "a", "model": " "}, "record: model must be a non-empty text"),
        ({"path": "a", "prompt_tokens": -1}, "record: prompt_tokens must be a whole number >= 0"),
        ({"path": "a", "buffer_bytes": 0.5}, "record: buffer_bytes must be a whole number >= 0"),
    ],
)
def test_bad_options_are_named(arguments: dict[str, Any], message: str) -> None:
    """When the operator is made, not when a stream begins."""
    with pytest.raises(InvalidArgument, match=message):
        record(**arguments)


def test_a_placeholder_without_a_value_is_named(tmp_path: Path) -> None:
    """Outside of a pipeline there is no request to take it from, unless it is passed."""
    recorder = record(tmp_path / "{request_id}.jsonl")
    seen = LIVES[0]([stop()], recorder)
    assert isinstance(seen.error, InvalidArgument)
    assert "{request_id} is not known" in seen.error.message
    LIVES[0]([stop()], record(f"{tmp_path}/"))
    assert files_in(tmp_path) == ["000001.jsonl"]


def test_arguments_go_before_the_scope(tmp_path: Path) -> None:
    """What is passed is written; the prompt is kept where it is passed, and counted."""
    recorder = record(
        tmp_path / "a.jsonl",
        request_id="r9",
        model="m",
        mode="decode",
        prompt_token_ids=(5, 6),
        clock=lambda: 0.0,
    )
    LIVES[0]([stop()], recorder)
    assert read_recording(tmp_path / "a.jsonl") == Recording(
        request_id="r9",
        model="m",
        mode="decode",
        prompt_tokens=2,
        prompt_token_ids=[5, 6],
        chunks=[TimedChunk(0.0, stop())],
        end=Ending(0.0, "completed"),
    )
