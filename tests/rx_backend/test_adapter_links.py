"""Trace identity between workers: what a request brings, and what its chunks take along."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan

from rx_backend.disagg import DisaggregationMode
from rx_backend.protocols import LLMEngineOutput, TraceLink
from tests.rx_backend._engines import (
    ScriptedEngine,
    adapter_of,
    chunk_of,
    collect,
    request,
    stop,
    token,
    virtual,
)
from tests.spans import Spans

MODES = list(DisaggregationMode)
THEIRS = TraceLink(trace_id="a" * 32, span_id="b" * 16)


def linked(chunk: LLMEngineOutput) -> LLMEngineOutput:
    """The chunk with a link that the engine set itself."""
    chunk.worker_trace_link = THEIRS
    return chunk


def identity_of(span: ReadableSpan) -> TraceLink:
    assert span.context is not None
    return TraceLink(
        trace_id=trace.format_trace_id(span.context.trace_id),
        span_id=trace.format_span_id(span.context.span_id),
    )


async def stamps(
    mode: DisaggregationMode, chunks: Sequence[LLMEngineOutput], spans: Spans
) -> list[str]:
    """Whose link each chunk carries in the end: ``ours``, ``theirs`` or ``-``."""
    items = await collect(
        await adapter_of(ScriptedEngine(*chunks), mode, spans).generate(request())
    )
    ours = identity_of(spans.one())
    names = {None: "-", THEIRS: "theirs", ours: "ours"}
    return [names[chunk_of(item).worker_trace_link] for item in items]


@pytest.mark.rows("T1")
@pytest.mark.reference("auto_span_records_migration_link")
@pytest.mark.parametrize("mode", MODES)
@virtual
async def test_a_migrated_request_links_to_where_it_was(mode: DisaggregationMode) -> None:
    """Its span names the earlier worker's span, and links to it."""
    spans = Spans()
    engine = ScriptedEngine(token(1), stop())
    await collect(await adapter_of(engine, mode, spans).generate(request(migrated_from=THEIRS)))
    span = spans.one()
    assert span.attributes is not None
    assert span.attributes["migration_trace_id"] == THEIRS.trace_id
    assert span.attributes["migration_span_id"] == THEIRS.span_id
    (link,) = span.links
    assert trace.format_trace_id(link.context.trace_id) == THEIRS.trace_id


@pytest.mark.rows("T1")
@pytest.mark.reference("auto_span_handles_malformed_hex_gracefully")
@virtual
async def test_a_malformed_migration_link_harms_nobody() -> None:
    """The request is served, and its span has the ids as they came, and no link."""
    spans = Spans()
    migrated = TraceLink(trace_id="not-valid-hex", span_id="ALSO-INVALID")
    engine = ScriptedEngine(token(1), stop())
    stream = await adapter_of(engine, "decode", spans).generate(request(migrated_from=migrated))
    assert len(await collect(stream)) == 2
    span = spans.one()
    assert span.attributes is not None
    assert span.attributes["migration_trace_id"] == "not-valid-hex"
    assert span.attributes["migration_span_id"] == "ALSO-INVALID"
    assert span.links == ()


@pytest.mark.rows("T2")
@pytest.mark.reference("auto_span_no_link_when_migration_link_missing")
@pytest.mark.parametrize("mode", MODES)
@virtual
async def test_a_fresh_request_has_no_trace_of_a_migration(mode: DisaggregationMode) -> None:
    """Without a migration link there is neither attribute, nor a link."""
    spans = Spans()
    await collect(await adapter_of(ScriptedEngine(stop()), mode, spans).generate(request()))
    span = spans.one()
    assert not [name for name in span.attributes or () if name.startswith("migration")]
    assert span.links == ()


@pytest.mark.rows("T3", "TY-link")
@pytest.mark.reference("adapter_stamps_worker_trace_link_on_first_non_empty_chunk")
@pytest.mark.parametrize("mode", MODES)
@virtual
async def test_the_first_chunk_with_tokens_is_stamped(mode: DisaggregationMode) -> None:
    """It carries this span's identity; handshakes before it don't, nor does a later chunk."""
    chunks = [LLMEngineOutput(), token(11), LLMEngineOutput(token_ids=[22, 23]), token(33)]
    if mode.is_prefill:
        assert await stamps(mode, [*chunks, stop()], Spans()) == ["-", "ours", "-", "-", "ours"]
    else:
        assert await stamps(mode, [*chunks, stop()], Spans()) == ["-", "ours", "-", "-", "-"]


@pytest.mark.rows("T3")
@pytest.mark.parametrize("mode", MODES)
@virtual
async def test_our_stamp_wins_once(mode: DisaggregationMode) -> None:
    """It replaces the engine's own on the first chunk with tokens; later chunks keep theirs."""
    chunks = [
        linked(LLMEngineOutput()),
        linked(token(1)),
        linked(token(2)),
        linked(LLMEngineOutput.length().with_tokens([3])),
    ]
    assert await stamps(mode, chunks, Spans()) == ["theirs", "ours", "theirs", "theirs"]


@pytest.mark.rows("T4")
@pytest.mark.reference("prefill_mode_stamps_worker_trace_link_on_terminal_when_no_token_chunks")
@pytest.mark.parametrize(
    ("before", "terminal", "expected"),
    [
        ([], stop(), ["ours"]),
        ([token(1)], stop(), ["ours", "ours"]),
        ([token(1), token(2)], LLMEngineOutput.length().with_tokens([3]), ["ours", "-", "ours"]),
        ([], LLMEngineOutput.length().with_tokens([1]), ["ours"]),
        ([], linked(stop()), ["theirs"]),
        ([token(1)], linked(stop()), ["ours", "theirs"]),
        ([], linked(LLMEngineOutput.length().with_tokens([1])), ["ours"]),
        ([], LLMEngineOutput.error("boom"), ["ours"]),
    ],
    ids=[
        "no-tokens",
        "after-token",
        "with-tokens",
        "first-token",
        "linked",
        "linked-after-token",
        "linked-first-token",
        "error",
    ],
)
@virtual
async def test_a_prefill_terminal_is_stamped(
    before: list[LLMEngineOutput], terminal: LLMEngineOutput, expected: list[str]
) -> None:
    """It carries the link with or without tokens, unless the engine gave it one."""
    assert await stamps(DisaggregationMode.PREFILL, [*before, terminal], Spans()) == expected


@pytest.mark.rows("T3", "T4")
@pytest.mark.parametrize("mode", [DisaggregationMode.AGGREGATED, DisaggregationMode.DECODE])
@virtual
async def test_elsewhere_a_terminal_is_stamped_as_first_token_only(
    mode: DisaggregationMode,
) -> None:
    """Outside prefill mode a terminal is a chunk like any other."""
    assert await stamps(mode, [stop()], Spans()) == ["-"]
    assert await stamps(mode, [token(1), stop()], Spans()) == ["ours", "-"]
    assert await stamps(mode, [LLMEngineOutput.length().with_tokens([1])], Spans()) == ["ours"]


@pytest.mark.rows("T3", "E2")
@virtual
async def test_chunks_from_dicts_are_stamped_too() -> None:
    """A plain dict's own link is read as one, and replaced as one."""
    spans = Spans()
    own = {"trace_id": THEIRS.trace_id, "span_id": THEIRS.span_id}
    engine = ScriptedEngine(
        {"token_ids": [1], "worker_trace_link": own},
        {"token_ids": [2], "worker_trace_link": own, "finish_reason": "stop"},
    )
    first, last = await collect(await adapter_of(engine, spans=spans).generate(request()))
    assert chunk_of(first).worker_trace_link == identity_of(spans.one())
    assert chunk_of(last).worker_trace_link == THEIRS


@pytest.mark.rows("T5")
@pytest.mark.reference("adapter_does_not_stamp_worker_trace_link_without_trace_context")
@pytest.mark.parametrize("mode", MODES)
@virtual
async def test_without_an_identity_nothing_is_stamped(mode: DisaggregationMode) -> None:
    """Where spans are not real the engine's chunks pass untouched, its own links included."""
    chunks = [token(11), linked(token(22)), LLMEngineOutput.length().with_tokens([33])]
    items = await collect(await adapter_of(ScriptedEngine(*chunks), mode).generate(request()))
    assert all(item.data is chunk for item, chunk in zip(items, chunks, strict=True))
