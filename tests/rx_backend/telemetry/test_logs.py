"""What is logged of requests: once, at the right level, with ids, and without anybody's text."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import suppress
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from reactivex import operators as ops
from structlog.testing import LogCapture, capture_logs

from operators import Pipeline
from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.errors import Disconnected, InvalidArgument
from rx_backend.logger import Logger, get_logger
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest, StopConditions
from rx_backend.telemetry import EXPORT_ENABLED, add_trace_ids, configure_logs
from tests.rx_backend._engines import (
    ScriptedEngine,
    Step,
    adapter_of,
    collect,
    request,
    run_virtual,
    stop,
    token,
    virtual,
)
from tests.rx_backend.telemetry._ends import SECRET
from tests.spans import Spans

LOGGER = "rx_backend.requests"
SECRET_ID = 987_654_321


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove what the environment says about recording and logs."""
    for name in (EXPORT_ENABLED, "DYN_LOG", "DYN_LOGGING_JSONL", "DYN_LOGGING_CONSOLE_FORMAT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def at_info() -> Generator[list[dict[str, Any]]]:
    """Structlog as a production service has it, from INFO on; gives the events."""
    capture = LogCapture()
    structlog.configure([capture], structlog.make_filtering_bound_logger(logging.INFO))
    yield capture.entries  # type: ignore[misc]
    structlog.reset_defaults()


async def logged(script: list[Step], **more: Any) -> list[Any]:
    """Serve one request at DEBUG; what was logged."""
    with capture_logs() as events:
        adapter = adapter_of(ScriptedEngine(*script), **more)
        await collect(await adapter.generate(request(), RequestContext("r1")))
    return events


@virtual
async def test_debug_tells_a_requests_life() -> None:
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


@pytest.mark.parametrize(
    ("mode", "script", "steps"),
    [
        ("agg", [1, token(1), stop()], [("abort made", False)]),
        ("decode", [1, token(1), stop()], [("abort made", True)]),
        ("decode", [1, stop()], [("abort suppressed", None)]),
    ],
    ids=["immediate", "deferred", "suppressed"],
)
@virtual
async def test_what_becomes_of_an_abort_is_told(
    mode: str, script: list[Step], steps: list[tuple[str, bool | None]], at_info: list[Any]
) -> None:
    """It is asked for, then made at once, made late, or not made; then the request ends."""
    context = RequestContext("r1")
    stream = await adapter_of(ScriptedEngine(*script), mode, Spans()).generate(request(), context)
    context.stop_generating()
    await collect(stream)
    told = [(event["event"], event.get("deferred")) for event in at_info]
    assert told == [("abort requested", None), *steps, ("request ended", None)]
    assert {event["request_id"] for event in at_info} == {"r1"}
    assert at_info[-1]["cancelled"] is True


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
async def test_an_error_is_told_by_its_class_and_place() -> None:
    """The first of its chain; its message is not told."""

    def fail(_context: RequestContext) -> None:
        try:
            {}[SECRET]
        except KeyError as error:
            raise Disconnected(SECRET) from error

    event = (await logged([token(1), fail]))[-1]
    assert (event["error_type"], event["error_class"]) == ("Disconnected", "KeyError")
    assert event["raised_at"].startswith(f"{__name__}:")


@virtual
async def test_logs_alone_have_no_latencies_measured(at_info: list[Any]) -> None:
    """Without tracing and metrics: tokens and duration; the rest where it is asked for (row P8)."""
    script = [1, token(1), 1, LLMEngineOutput([2, 3]), stop()]
    for record in (None, True, False):
        adapter = adapter_of(ScriptedEngine(*script), record=record)
        await collect(await adapter.generate(request()))
    plain, measured, unmeasured = at_info
    assert (plain["output_tokens"], plain["duration_ms"]) == (3, 2000.0)
    assert "ttft_ms" not in plain
    assert "trace_id" not in plain
    assert (measured["output_tokens"], measured["ttft_ms"]) == (3, 1000.0)
    assert unmeasured["output_tokens"] == 3
    assert "duration_ms" not in unmeasured


@virtual
async def test_a_trace_from_elsewhere_is_told_of_too(at_info: list[Any]) -> None:
    """Without tracing in this process: the caller's ids; measured unless it was left out there."""
    for flags in ("01", "00"):
        headers = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-{flags}"}
        adapter = adapter_of(ScriptedEngine(1, token(1), stop()))
        await collect(await adapter.generate(request(), RequestContext(trace_headers=headers)))
    sampled, left_out = at_info
    assert (sampled["trace_id"], sampled["span_id"]) == ("a" * 32, "b" * 16)
    assert (sampled["trace_flags"], sampled["duration_ms"]) == ("01", 1000.0)
    assert left_out["trace_flags"] == "00"
    assert "duration_ms" not in left_out


@pytest.mark.rows("P8")
@virtual
async def test_no_clock_is_read_for_an_unsampled_request(at_info: list[Any]) -> None:
    """It is told with its ids and tokens, but not how long it took."""

    def clock() -> float:
        raise AssertionError("the clock was read")

    tracer = TracerProvider(ALWAYS_OFF, shutdown_on_exit=False).get_tracer("tests")
    adapter = EngineAdapter(ScriptedEngine(token(1), stop()), tracer=tracer, clock=clock)
    await collect(await adapter.generate(request()))
    (event,) = at_info
    assert (event["output_tokens"], event["trace_flags"][1]) == (1, "2")
    assert len(event["trace_id"]) == 32


@virtual
async def test_a_pipeline_of_ones_own_has_its_end_told(at_info: list[Any]) -> None:
    """One without any operator: how it ended, and how long it took."""
    adapter = adapter_of(ScriptedEngine(1, token(1), stop()), pipeline=Pipeline([]))
    await collect(await adapter.generate(request()))
    (event,) = at_info
    assert (event["event"], event["duration_ms"]) == ("request ended", 1000.0)
    assert event["finish_reason"] == "stop"


@virtual
async def test_standard_logging_gets_the_events(caplog: pytest.LogCaptureFixture) -> None:
    """Fields are attributes of the record, and words of its message, which can't break a line."""
    caplog.set_level(logging.INFO, LOGGER)
    adapter = adapter_of(ScriptedEngine(token(1), stop()), spans=Spans())
    await collect(await adapter.generate(request(), RequestContext("r 1\n2")))
    (record,) = caplog.records
    assert (record.name, record.levelname) == (LOGGER, "INFO")
    assert record.getMessage().startswith('request ended request_id="r 1\\n2" trace_id=')
    fields = vars(record)
    assert (fields["request_id"], fields["finish_reason"]) == ("r 1\n2", "stop")
    assert f" trace_id={fields['trace_id']} span_id={fields['span_id']} " in record.getMessage()


@virtual
async def test_only_failures_reach_who_wants_warnings(caplog: pytest.LogCaptureFixture) -> None:
    """As with standard logging that was set up without a level."""
    caplog.set_level(logging.WARNING)
    for end in (stop(), Disconnected("gone")):
        adapter = adapter_of(ScriptedEngine(token(1), end))
        await collect(await adapter.generate(request()))
    (record,) = caplog.records
    assert vars(record)["error_type"] == "Disconnected"
    assert record.pathname.endswith("request_log.py")


def test_a_record_factory_may_set_the_same_names(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As correlation-id libraries do; the event's own value is the one that counts."""
    made = logging.getLogRecordFactory()

    def factory(*args: Any, **more: Any) -> logging.LogRecord:
        record = made(*args, **more)
        vars(record)["request_id"] = "another's"
        return record

    monkeypatch.setattr(logging, "_logRecordFactory", factory)
    get_logger("rx_backend.x").warning("100% of it", request_id="mine")
    (record,) = caplog.records
    assert vars(record)["request_id"] == "mine"
    assert record.getMessage() == "100% of it request_id=mine"
    assert record.funcName == "test_a_record_factory_may_set_the_same_names"


@virtual
async def test_logging_that_fails_disturbs_nobody(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A processor that raises is complained of once, and the stream goes on to its end."""
    monkeypatch.setattr("rx_backend.logger._reported", [])

    def broken(*_: object) -> Mapping[str, Any]:
        raise RuntimeError("no disk")

    structlog.configure([broken])
    items = await collect(await adapter_of(ScriptedEngine(token(1), stop())).generate(request()))
    assert len(items) == 2
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
    assert capture.entries[-1] == {"event": "outside", "log_level": "warning"}


SECRET_CHUNK = LLMEngineOutput([SECRET_ID], text=SECRET, engine_data={"said": SECRET})
SECRET_STEPS: st.SearchStrategy[list[Step]] = st.lists(
    st.sampled_from([SECRET_CHUNK, LLMEngineOutput(), 1, RequestContext.stop_generating]),
    max_size=4,
)
SECRET_ENDS: st.SearchStrategy[list[Step]] = st.sampled_from(
    [
        *([stop()], [], [60], [SECRET_CHUNK, 60], [LLMEngineOutput.error(SECRET)]),
        *([Disconnected(SECRET)], [ValueError(SECRET)], [{"finish_reason": SECRET}]),
        [{"token_ids": SECRET}],
    ]
)


@given(
    SECRET_STEPS, SECRET_ENDS, st.booleans(), st.integers(1, 3), st.sampled_from(["agg", "decode"])
)
def test_nobodys_text_is_told_at_any_level(
    script: list[Step], end: list[Step], fails_early: bool, patience: int, mode: str
) -> None:
    """Neither of the prompt nor generated, nor of errors, nor token ids; whatever happens."""
    asked = PreprocessedRequest(
        token_ids=[SECRET_ID] * 3,
        extra_args={"prompt": SECRET},
        annotations=[SECRET],
        stop_conditions=StopConditions(stop=[SECRET]),
    )
    engine = ScriptedEngine(
        *script,
        *end,
        setup=[ValueError(SECRET)] if fails_early else [],
        abort=[KeyError(SECRET)],
        closing=[0.5],
    )

    def hear() -> None:
        raise RuntimeError(SECRET)

    async def serve() -> None:
        context = RequestContext("r1")
        context.stopped().listen(hear)
        try:
            async with asyncio.timeout(patience):
                stream = await adapter_of(engine, mode, Spans()).generate(asked, context)
                async with stream:
                    await collect(stream)
        except (TimeoutError, InvalidArgument):
            pass
        await asyncio.sleep(5)

    records = _Records()
    logging.root.addHandler(records)
    level = logging.root.level
    logging.root.setLevel(logging.DEBUG)
    try:
        run_virtual(serve())
        with capture_logs() as events:
            run_virtual(serve())
    finally:
        logging.root.setLevel(level)
        logging.root.removeHandler(records)
    told = repr((events, records.told))
    assert "request started" in told
    assert (SECRET in told, str(SECRET_ID) in told) == (False, False)


class _Records(logging.Handler):
    """Keeps all that there is of records."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(f"{logging.Formatter().format(record)} {vars(record)}")


def test_logs_are_left_to_who_set_them_up() -> None:
    """Handlers of standard logging, as pytest's, and a structlog that is configured stay alone."""
    before = logging.root.handlers[:], logging.getLogger("rx_backend").level
    with configure_logs() as logs:
        assert str(logs).startswith("left to the handlers")
        assert (logging.root.handlers, logging.getLogger("rx_backend").level) == before
    structlog.configure([structlog.processors.JSONRenderer()])
    processors = structlog.get_config()["processors"]
    assert str(configure_logs()).startswith("left to structlog")
    assert structlog.get_config()["processors"] is processors


@pytest.mark.parametrize(
    ("variable", "text"),
    [("DYN_LOGGING_JSONL", "perhaps"), ("DYN_LOGGING_CONSOLE_FORMAT", "xml"), ("level", "loud")],
)
def test_a_bad_value_is_told(variable: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the variable or the argument."""
    monkeypatch.setenv(variable, text)
    with pytest.raises(InvalidArgument, match=variable):
        configure_logs(level="loud" if variable == "level" else None)


def child(way: str, **environ: str) -> tuple[str, list[str]]:
    """Run a process of requests; what it printed, and the lines of its stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.rx_backend.telemetry.logging_child", way],
        env={"PATH": "", **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout, done.stderr.splitlines()


def test_json_lines_have_the_fields() -> None:
    """Each line is an object that Dynamo's readers and OpenTelemetry's understand."""
    said, lines = child("everything", DYN_LOGGING_JSONL="1")
    assert said == "JSON lines from info on, to stderr\n"
    ended, engines, failed = map(json.loads, lines)
    assert [line["level"] for line in (ended, engines, failed)] == ["INFO", "WARN", "WARN"]
    assert (ended["target"], ended["message"]) == (LOGGER, "request ended")
    assert (ended["request_id"], ended["finish_reason"]) == ("r1", "length")
    assert ended["time"].endswith("Z")
    assert len(ended["trace_id"]) == 32
    assert (engines["target"], engines["message"]) == ("an_engine", "a line of an engine's")
    assert (failed["error_type"], failed["output_tokens"]) == ("Disconnected", 1)
    ids = ("trace_id", "span_id", "trace_flags")
    assert [engines[name] for name in ids] == [failed[name] for name in ids]


def test_lines_to_read() -> None:
    """Without a word about JSON; ``DYN_LOG`` sets the levels, also of one logger."""
    said, lines = child("ours", DYN_LOG="debug,rx_backend.requests=info,tower::x=error")
    assert said == "lines from debug on, to stderr\n"
    ended, engines, failed = lines
    assert "[info     ] request ended " in ended
    assert " [rx_backend.requests] request_id=r1 trace_id=" in ended
    assert engines == "a line of an engine's"
    assert "[warn     ] request failed " in failed
    assert child("ours", DYN_LOG="info,rx_backend.requests=off")[1] == [engines]


@pytest.mark.parametrize(
    ("environ", "count"),
    [({}, 1), ({"DYN_LOG": "warn"}, 2), ({"DYN_LOGGING_CONSOLE_FORMAT": "jsonl"}, 3)],
)
def test_telemetry_writes_logs_where_the_environment_asks(
    environ: dict[str, str], count: int
) -> None:
    """By its one call; else the log stays as it is."""
    said, lines = child("all_telemetry", **environ)
    assert ("; logs: " in said) == (count > 1)
    assert len(lines) == count


def test_nothing_is_written_unless_somebody_listens() -> None:
    """Requests, failing ones too, leave no line of the library's."""
    assert child("nothing") == ("", ["a line of an engine's"])


def test_standard_logging_that_is_set_up_is_used() -> None:
    """Its handler, its level and its format; nothing is written twice."""
    said, lines = child("stdlib")
    assert said.startswith("left to the handlers")
    ended, _, failed = lines
    assert ended.startswith(f"{LOGGER}|request ended request_id=r1 ")
    assert failed.startswith(f"{LOGGER}|request failed request_id=r2 ")


def test_a_structlog_that_is_set_up_is_used() -> None:
    """Its processors and where it prints; nothing is written twice."""
    said, lines = child("with_structlog")
    assert lines == ["a line of an engine's"]
    events = [json.loads(line)["event"] for line in said.splitlines()[1:]]
    assert events == [
        *("request started", "first token", "request ended"),
        *("request started", "first token", "request failed"),
    ]


def test_importing_configures_nothing() -> None:
    """Neither structlog nor any logger of the standard library is touched."""
    code = """
import logging
def state():
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    return {
        (one.name, one.level, one.propagate, one.disabled, *one.handlers, *one.filters)
        for one in loggers
        if isinstance(one, logging.Logger)
    }
import rx_backend, rx_backend.telemetry, rx_backend.recording, rx_backend.failover, structlog
touched = {one for one in state() if one[1:] != (0, True, False)}
print(sorted(touched), structlog.is_configured())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[('root', 30, True, False)] False\n", "")


def test_a_logger_binds_without_changing_itself() -> None:
    """What is bound stays with the new logger."""
    logger = Logger("rx_backend.x", {"a": 1})
    with capture_logs() as events:
        logger.bind(b=2).error("one")
        logger.debug("two")
    assert events == [
        {"event": "one", "log_level": "error", "a": 1, "b": 2},
        {"event": "two", "log_level": "debug", "a": 1},
    ]
