"""What the tests of recordings share: sound recordings, and adapters that record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from rx_backend.context import RequestContext
from rx_backend.engine import LLMEngine
from rx_backend.errors import KINDS
from rx_backend.pipeline import standard_pipeline
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest
from rx_backend.recording import Ending, Recording, TimedChunk, record
from rx_backend.recording.format import append_chunk, ending_line, header_line
from tests.engines import Stream, adapter_of, request
from tests.rx_backend.wire_strategies import ids, outputs, texts, unknown_keys

GOLDEN = Path(__file__).parent / "golden" / "version_1.jsonl"

token = LLMEngineOutput.token


def recorded(*times_ms: float, end: Ending | None = None, **known: Any) -> Recording:
    """Return a recording of the tokens 1, 2, ..., the last one with `stop` unless *end* says otherwise."""
    chunks = [TimedChunk(time_ms, token(n)) for n, time_ms in enumerate(times_ms, 1)]
    if end is None:
        chunks[-1].chunk = LLMEngineOutput.stop().with_tokens([len(chunks)])
        end = Ending(times_ms[-1], "completed")
    return Recording(chunks=chunks, end=end, **known)


def write_recording(recording: Recording, path: Path) -> None:
    """Write all that `record` writes of a stream."""
    lines = bytearray(header_line(recording))
    for timed in recording.chunks:
        append_chunk(lines, timed.time_ms, timed.chunk)
    if recording.end is not None:
        lines += ending_line(recording.end)
    path.write_bytes(lines)


async def recording_stream(
    engine: LLMEngine,
    folder: Path | str,
    request_id: str = "r1",
    *,
    in_front: bool = False,
    asked: PreprocessedRequest | None = None,
    **options: Any,
) -> Stream:
    """Ask *engine* through an adapter that records, at the end of its pipeline or in front."""
    recorder = record(folder, **options)
    if in_front:
        pipeline = standard_pipeline.insert_before("validate_chunks", recorder)
    else:
        pipeline = standard_pipeline.with_operators(recorder)
    adapter = adapter_of(engine, pipeline=pipeline)
    return await adapter.generate(asked or request(), RequestContext(request_id))


# Strategies. Times are whole milliseconds.


def _ordinary(chunk: LLMEngineOutput) -> LLMEngineOutput:
    chunk.finish_reason = None
    return chunk


chunks = st.builds(token, st.integers(0, 99)) | outputs(unknown=unknown_keys).map(_ordinary)
terminals = outputs(unknown=unknown_keys).filter(lambda chunk: chunk.finish_reason is not None)


@st.composite
def recordings(draw: st.DrawFn) -> Recording:
    """Draw recordings of streams that kept to the contract, dropped and failed ones included."""
    gaps_ms = draw(st.lists(st.integers(0, 50), max_size=6))
    now_ms = 0
    timed: list[TimedChunk] = []
    for gap_ms in gaps_ms:
        now_ms += gap_ms
        timed.append(TimedChunk(float(now_ms), draw(chunks)))
    now_ms += draw(st.integers(0, 50))
    how = draw(st.sampled_from(["completed", "error", "dropped"]))
    if how == "completed":
        timed.append(TimedChunk(float(now_ms), draw(terminals)))
        end = Ending(float(now_ms), "completed")
    elif how == "error":
        kind = draw(st.sampled_from(sorted(KINDS)))
        end = Ending(float(now_ms), "error", kind, draw(texts))
    else:
        # Between two milliseconds, so that no chunk comes in the same instant.
        end = Ending(now_ms + 0.5, "dropped")
    return Recording(
        request_id=draw(st.none() | texts),
        model=draw(st.none() | texts),
        mode=draw(st.none() | st.just("agg")),
        prompt_tokens=draw(st.none() | st.integers(0, 9)),
        prompt_token_ids=draw(st.none() | ids),
        chunks=timed,
        end=end,
    )
