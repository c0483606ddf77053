"""What is logged of requests: once, at the right level, with ids, and without anybody's text."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator
from contextlib import suppress
from typing import Any

import pytest
import structlog
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Sampler
from reactivex import operators as ops
from structlog.testing import LogCapture

from operators import Pipeline, on_outcome
from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.errors import Disconnected
from rx_backend.logger import get_logger
from rx_backend.pipeline import standard_pipeline
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest
from rx_backend.protocols import usage as usage_of
from rx_backend.telemetry import add_trace_ids
from tests.engines import ScriptedEngine, Step, adapter_of, collect, request, stop, token, virtual
from tests.logs import capture_logs
from tests.rx_backend.telemetry._ends import SECRET
from tests.spans import Spans

LOGGER = "rx_backend.requests"
USED = LLMEngineOutput.error("boom").with_usage(usage_of(3, 5))


@pytest.fixture
def at_info() -> Generator[list[dict[str, Any]]]:
    """Logging as a production service has it, from INFO on; gives the events."""
    with capture_logs(logging.INFO) as events:
        yield events


async def logged(script: list[Step], **more: Any) -> list[Any]:
    """Serve one request at DEBUG; what was logged."""
    with capture_logs() as events:
        adapter = adapter_of(ScriptedEngine(*script), **more)
        await collect(await adapter.generate(request(), RequestContext("r1")))
    return events


@virtual
async def test_debug_logs_each_step_of_a_request() -> None:
    """Start, first token and end, in that order and with the same ids."""
    events = await logged([1, LLMEngineOutput(), 1, token(1), 1, token(2), stop()], spans=Spans())
    assert [(event["event"], event["log_level"]) for event in events] == [
        ("request started", "debug"),
        ("first token", "debug"),
        ("request ended", "info"),
    ]
    assert [event["span_id"] for event in events] == [events[0]["span_id"]] * 3
    _, first, end = events
    assert first["ttft_ms"] == end["ttft_ms"] == 2000.0
    assert end["duration_ms"] == 3000.0
    assert (end["itl_p50_ms"], end["itl_max_ms"]) == (1000.0, 1000.0)


@virtual
async def test_info_is_one_line_per_request(at_info: list[dict[str, Any]]) -> None:
    """Nothing else of a request that goes well; nothing at all of a health probe that does."""
    adapter = adapter_of(ScriptedEngine(1, token(1), stop()), spans=Spans())
    await collect(await adapter.generate(request()))
    assert [event["event"] for event in at_info] == ["request ended"]
    probe = PreprocessedRequest(token_ids=[1], is_probe=True)
    await collect(await adapter.generate(probe))
    assert len(at_info) == 1
    failing = adapter_of(ScriptedEngine(Disconnected("gone")), spans=Spans())
    await collect(await failing.generate(probe))
    assert [event["event"] for event in at_info[1:]] == ["request failed"]


@pytest.mark.rows("O4")
@pytest.mark.parametrize(
    ("headers", "clients"),
    [({}, None), ({"X-Request-Id": "c7"}, "c7"), ({"x-request-id": "x" * 9_000}, "x" * 256)],
)
@virtual
async def test_failures_are_found_by_the_clients_ids(
    headers: dict[str, str], clients: str | None
) -> None:
    """An operator's and an engine's: by the frontend's id, and by the one that the client sent."""

    def fail(_chunk: object) -> object:
        raise KeyError(SECRET)

    with capture_logs() as events:
        for step, operators in ((KeyError(SECRET), ()), (stop(), (ops.map(fail),))):
            adapter = adapter_of(ScriptedEngine(token(1), step)).with_operators(*operators)
            context = RequestContext("r1", trace_headers=headers)
            with suppress(KeyError):
                await collect(await adapter.generate(request(), context))
    failures = [event for event in events if event["log_level"] in {"warning", "error"}]
    names = [event["event"] for event in failures]
    assert names == ["request failed", "operator failed", "request failed"]
    ids = {(event["request_id"], event.get("x_request_id")) for event in failures}
    assert ids == {("r1", clients)}


@virtual
async def test_an_error_is_logged_by_class_and_place() -> None:
    """The first of its chain; its message is not logged."""

    def fail(_context: RequestContext) -> None:
        try:
            {}[SECRET]
        except KeyError as error:
            raise Disconnected(SECRET) from error

    event = (await logged([token(1), fail]))[-1]
    assert (event["error_type"], event["error_class"]) == ("Disconnected", "KeyError")
    assert event["raised_at"].startswith(f"{__name__}:")


FROM_ELSEWHERE = "00-" + "a" * 32 + "-" + "b" * 16


@pytest.mark.rows("P8")
@pytest.mark.parametrize(
    ("record", "header", "sampler", "has_duration", "has_latencies"),
    [
        (None, None, None, True, False),
        (True, None, None, True, True),
        (False, None, None, False, False),
        (None, f"{FROM_ELSEWHERE}-01", None, True, False),
        (None, f"{FROM_ELSEWHERE}-00", None, False, False),
        (None, None, ALWAYS_OFF, False, False),
    ],
    ids=["no-traces", "recorded", "unrecorded", "sampled-there", "left-out-there", "left-out"],
)
@virtual
async def test_only_sampled_requests_are_timed(
    *,
    record: bool | None,
    header: str | None,
    sampler: Sampler | None,
    has_duration: bool,
    has_latencies: bool,
    at_info: list[Any],
) -> None:
    """Tokens and ids are there always; where nothing is measured no clock is read."""
    reads = list[None]()

    def clock() -> float:
        reads.append(None)
        return asyncio.get_running_loop().time()

    provider = TracerProvider(sampler, shutdown_on_exit=False)
    tracer = provider.get_tracer("tests") if sampler else None
    engine = ScriptedEngine(1, token(1), 1, LLMEngineOutput([2, 3]), stop())
    adapter = EngineAdapter(engine, tracer=tracer, record=record, clock=clock)
    headers = {"traceparent": header} if header else {}
    await collect(await adapter.generate(request(), RequestContext(trace_headers=headers)))
    (event,) = at_info
    assert event["output_tokens"] == 3
    assert event.get("duration_ms") == (2000.0 if has_duration else None)
    assert event.get("ttft_ms") == (1000.0 if has_latencies else None)
    assert bool(reads) is has_duration
    assert event.get("trace_id", "a" * 32) == "a" * 32 or sampler is not None
    assert (len(event.get("trace_id", "")) == 32) is bool(header or sampler)
    assert (event.get("trace_flags", "00")[1] == "1") is (header is not None and has_duration)


@pytest.mark.parametrize(("level", "is_counted"), [(logging.INFO, True), (logging.WARNING, False)])
@pytest.mark.parametrize(
    ("end", "usage"),
    [(Disconnected("gone"), None), (LLMEngineOutput.error("boom"), None), (USED, 5)],
)
@virtual
async def test_uncounted_tokens_are_not_logged(
    level: int, end: Step, usage: int | None, is_counted: bool
) -> None:
    """
    Without telemetry, and at the usual level of a program that set up no log: no wrong number.

    What the engine says in its usage counts then.
    """
    told: list[int | None] = []
    note = on_outcome(lambda outcome: told.append(outcome.output_tokens))
    pipeline = standard_pipeline.insert_after("record_span", note)
    with capture_logs(level) as events:
        adapter = EngineAdapter(ScriptedEngine(token(1), token(2), end), pipeline=pipeline)
        await collect(await adapter.generate(request()))
        async with await adapter.generate(request()) as stream:
            await anext(stream)
    failed = next(event for event in events if event["event"] == "request failed")
    expected = 2 if is_counted else usage
    assert failed.get("output_tokens") == expected
    assert told == [expected, 1 if is_counted else None]


@virtual
async def test_the_end_of_a_custom_pipeline_is_logged(at_info: list[Any]) -> None:
    """One without any operator: how it ended, and how long it took."""
    adapter = adapter_of(ScriptedEngine(1, token(1), stop()), pipeline=Pipeline([]))
    await collect(await adapter.generate(request()))
    (event,) = at_info
    assert (event["event"], event["duration_ms"]) == ("request ended", 1000.0)
    assert event["finish_reason"] == "stop"


@virtual
async def test_standard_logging_gets_the_events(caplog: pytest.LogCaptureFixture) -> None:
    """From its level up; fields are attributes, and words of the message that can't break a line."""
    for level, count in ((logging.INFO, 2), (logging.WARNING, 1)):
        caplog.set_level(level, LOGGER)
        caplog.clear()
        for end in (stop(), Disconnected("gone")):
            adapter = adapter_of(ScriptedEngine(token(1), end), spans=Spans())
            await collect(await adapter.generate(request(), RequestContext("r 1\n2")))
        assert len(caplog.records) == count
    (record,) = caplog.records
    assert (record.name, record.levelname) == (LOGGER, "WARNING")
    assert record.pathname.endswith("request_log.py")
    assert record.getMessage().startswith('request failed request_id="r 1\\n2" trace_id=')
    fields = vars(record)
    assert (fields["request_id"], fields["error_type"]) == ("r 1\n2", "Disconnected")
    assert f" trace_id={fields['trace_id']} span_id={fields['span_id']} " in record.getMessage()


def test_a_record_factory_may_set_the_same_names(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As correlation-id libraries do; the record keeps its own, and the message has the event's."""
    made = logging.getLogRecordFactory()

    def factory(*args: Any, **more: Any) -> logging.LogRecord:
        record = made(*args, **more)
        vars(record)["request_id"] = "another's"
        return record

    monkeypatch.setattr(logging, "_logRecordFactory", factory)
    get_logger("rx_backend.x").warning("100% of it", request_id="mine")
    (record,) = caplog.records
    assert vars(record)["request_id"] == "another's"
    assert record.getMessage() == "100% of it request_id=mine"
    assert record.funcName == "test_a_record_factory_may_set_the_same_names"


@virtual
async def test_a_failing_log_handler_does_no_harm(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler that raises is complained of once, and the stream continues to its end."""
    monkeypatch.setattr("rx_backend.logger._reported", [])

    def broken(_record: object) -> bool:
        raise RuntimeError("no disk")

    logger = logging.getLogger(LOGGER)
    monkeypatch.setattr(logger, "filters", [broken])
    for _ in range(2):
        engine = ScriptedEngine(token(1), Disconnected("gone"))
        assert len(await collect(await adapter_of(engine).generate(request()))) == 2
    assert (
        capsys.readouterr().err.count("logging failed, reported once: RuntimeError('no disk')") == 1
    )


@pytest.mark.rows("P9")
@virtual
async def test_an_engines_own_events_get_the_requests_ids() -> None:
    """Through the processor, within ``generate``; outside of it nothing is added."""
    capture = LogCapture()
    structlog.configure([add_trace_ids, capture])
    spans = Spans()

    def say(_context: RequestContext) -> None:
        structlog.get_logger("an_engine").warning("mine", more=1)
        structlog.get_logger("an_engine").warning("another's", trace_id="kept")

    await collect(await adapter_of(ScriptedEngine(say, stop()), spans=spans).generate(request()))
    structlog.get_logger().warning("outside")
    context = spans.one().context
    assert context is not None
    assert {
        "event": "mine",
        "log_level": "warning",
        "more": 1,
        "trace_id": trace.format_trace_id(context.trace_id),
        "span_id": trace.format_span_id(context.span_id),
        "trace_flags": f"{context.trace_flags:02x}",
    } in capture.entries
    kept = {"event": "another's", "log_level": "warning", "trace_id": "kept"}
    assert kept in capture.entries
    assert capture.entries[-1] == {"event": "outside", "log_level": "warning"}
