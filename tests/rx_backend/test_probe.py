"""Health probes: JSON in, the same adapter, JSON out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, cast

import pytest
from opentelemetry.trace import StatusCode

from rx_backend.context import RequestContext
from rx_backend.disagg import DisaggregationMode
from rx_backend.errors import Disconnected, InvalidArgument, Unknown
from rx_backend.probe import JsonProbeAdapter
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest, usage
from tests.engines import ScriptedEngine, adapter_of, collect, stop, token, virtual
from tests.spans import Spans

PROBE = {"token_ids": [1], "_HEALTH_CHECK": True}


@pytest.mark.rows("H1")
@virtual
async def test_a_probe_speaks_json() -> None:
    """The engine has a typed request, the prober plain data, and both go the usual way."""
    spans = Spans()
    engine = ScriptedEngine(
        LLMEngineOutput(engine_data={"handshake": True}),
        token(7),
        LLMEngineOutput.length().with_tokens([8]).with_usage(usage(1, 2)),
    )
    probe = JsonProbeAdapter(adapter_of(engine, spans=spans))
    items = await collect(await probe.generate({**PROBE, "later_version": 1}))
    assert [item.data for item in items] == json.loads(json.dumps([item.data for item in items]))
    handshake, first, last = (item.data for item in items)
    assert handshake is not None
    assert handshake["engine_data"] == {"handshake": True}
    assert first is not None
    assert first["token_ids"] == [7]
    assert set(first["worker_trace_link"]) == {"trace_id", "span_id"}
    assert last is not None
    assert (last["token_ids"], last["finish_reason"]) == ([8], "length")
    (asked,) = engine.requests
    assert asked.is_probe
    assert asked.unknown == {"later_version": 1}
    attributes = spans.one().attributes
    assert attributes is not None
    assert (attributes["model"], attributes["output_tokens"]) == ("", 2)


@pytest.mark.rows("H1")
@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({}, "token_ids"),
        ({"token_ids": "abc"}, "token_ids"),
        ({"token_ids": [1, "x"]}, r"token_ids\[1\]"),
        ({"token_ids": [1, -1]}, r"token_ids\[1\]"),
        ({"token_ids": [1], "stop_conditions": {"max_tokens": "many"}}, "max_tokens"),
        ({"token_ids": [1], "model": 5}, "model"),
        ({"token_ids": [1], "migration_link": {"trace_id": "1"}}, "span_id"),
        ([1, 2], "object"),
        (None, "object"),
        ("text", "object"),
    ],
)
@virtual
async def test_an_invalid_payload_names_the_field(payload: object, field: str) -> None:
    """The prober has a clear error, and the engine is not called."""
    engine = ScriptedEngine(stop())
    probe = JsonProbeAdapter(adapter_of(engine, spans=Spans()))
    with pytest.raises(InvalidArgument, match=field):
        await probe.generate(cast("Mapping[str, Any]", payload))
    assert engine.calls == 0


@pytest.mark.rows("H2", "O2")
@pytest.mark.reference("probe_surfaces_engine_error_terminal_as_annotated_error")
@pytest.mark.parametrize("mode", list(DisaggregationMode))
@virtual
async def test_an_error_terminal_is_an_error_for_the_probe(mode: DisaggregationMode) -> None:
    """A failed run can't pass for a healthy one, neither on the span."""
    spans = Spans()
    engine = ScriptedEngine(token(1), LLMEngineOutput.error("boom"))
    probe = JsonProbeAdapter(adapter_of(engine, mode, spans))
    first, last = await collect(await probe.generate(PROBE))
    assert first.data is not None
    assert last.data is None
    assert (last.event, last.comment, last.is_error) == ("error", ["boom"], True)
    assert isinstance(last.error, Unknown)
    attributes = spans.one().attributes
    assert attributes is not None
    assert attributes["error_kind"] == "Backend(Unknown)"
    assert spans.one().status.status_code is StatusCode.ERROR


@pytest.mark.rows("H1", "S5", "S6")
@virtual
async def test_an_error_of_the_engine_keeps_its_kind() -> None:
    """In mid-stream it is the error item that every consumer gets; a failed set-up is raised."""
    error = Disconnected("gone")
    probe = JsonProbeAdapter(adapter_of(ScriptedEngine(error)))
    (item,) = await collect(await probe.generate(PROBE))
    assert (item.error, item.comment) == (error, ["gone"])
    with pytest.raises(Disconnected):
        await JsonProbeAdapter(adapter_of(ScriptedEngine(setup=[error]))).generate(PROBE)


@pytest.mark.rows("H1", "A2", "S7")
@virtual
async def test_a_probe_is_a_request_like_any_other() -> None:
    """Aborted on a stop, released on a drop; and the worker's own requests don't become JSON."""
    context = RequestContext()
    engine = ScriptedEngine(token(1), 60, stop())
    adapter = adapter_of(engine)
    stream = await JsonProbeAdapter(adapter).generate(PROBE, context)
    await anext(stream)
    context.stop_generating()
    await stream.aclose()
    await asyncio.sleep(1)
    assert (len(engine.aborts), engine.closed) == (1, 1)
    own = await adapter.generate(PreprocessedRequest(token_ids=[1]))
    assert isinstance((await anext(own)).data, LLMEngineOutput)
    await own.aclose()
