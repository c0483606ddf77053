"""From engine chunks to items: the shapes of an answer, order, ends, and failures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest
from opentelemetry.trace import StatusCode

from rx_backend.context import RequestContext
from rx_backend.engine import EngineConfig, LLMEngine, check_config, check_methods, open_chunks
from rx_backend.engines import SampleEngine
from rx_backend.errors import (
    KINDS,
    BackendError,
    Disconnected,
    InvalidArgument,
    ResponseTimeout,
    Unknown,
)
from rx_backend.protocols import FinishReason, LLMEngineOutput, PreprocessedRequest, usage
from tests.engines import (
    DROPPED,
    ENTRY,
    ScriptedEngine,
    Step,
    adapter_of,
    chunk_of,
    collect,
    now,
    request,
    serve,
    settle,
    status_of,
    stop,
    token,
    tokens_of,
    virtual,
)
from tests.logs import capture_logs
from tests.spans import Spans, rows_of

# What engines raise, and what the consumer gets of it.
FAILURES = [
    *(pytest.param(error("it broke"), error, id=kind) for kind, error in KINDS.items()),
    pytest.param(ValueError("it broke"), InvalidArgument, id="ValueError"),
    pytest.param(RuntimeError("it broke"), Unknown, id="RuntimeError"),
    pytest.param(TimeoutError("it broke"), ResponseTimeout, id="TimeoutError"),
    pytest.param(ExceptionGroup("g", [Disconnected("it broke")]), Disconnected, id="group"),
]
INTERRUPTS = [KeyboardInterrupt, SystemExit]


@pytest.mark.rows("S1", "A1", "T3")
@pytest.mark.reference("adapter_maps_chunks_to_outputs")
@virtual
async def test_chunks_come_out_once_in_order_and_unchanged() -> None:
    """Each is the very object that the engine made, but for the stamped first one, a copy."""
    twice = token(11)
    chunks = [
        LLMEngineOutput(engine_data={"handshake": True}),
        twice,
        twice,
        LLMEngineOutput(token_ids=[12, 13], text="ab", log_probs=[-0.5, -0.1]),
        LLMEngineOutput.length().with_tokens([22]).with_usage(usage(3, 2)),
    ]
    for traced in (True, False):
        engine = ScriptedEngine(*chunks)
        served = await serve(engine, traced=traced)
        is_made = [item.data is chunk for item, chunk in zip(served.items, chunks, strict=True)]
        assert is_made == [True, not traced, True, True, True]
        assert not any(item.is_error or item.event or item.comment for item in served.items)
        assert twice.worker_trace_link is None
        assert engine.aborts == []


@pytest.mark.rows("S2", "S8", "E3", "P3", "P6")
@pytest.mark.parametrize(
    "reason",
    [
        FinishReason.EOS,
        FinishReason.STOP,
        FinishReason.LENGTH,
        FinishReason.CANCELLED,
        FinishReason.CONTENT_FILTER,
        FinishReason.error("boom"),
    ],
    ids=str,
)
@virtual
async def test_the_stream_ends_with_its_terminal(reason: FinishReason) -> None:
    """Any is handed out and recorded, the engine closed and not pulled again, and what follows lost."""
    spans = Spans()
    engine = ScriptedEngine(
        token(1), LLMEngineOutput(token_ids=[2], finish_reason=reason), token(3), stop()
    )
    stream = await adapter_of(engine, spans=spans).generate(request())
    items = [await anext(stream), await anext(stream)]
    assert chunk_of(items[-1]).finish_reason == reason
    row, status = rows_of(spans.one()), status_of(spans.one())
    assert (row["finish_reason"], row["cancelled"]) == (reason.span_value, False)
    failed = (StatusCode.ERROR, reason.span_value)
    assert status == (failed if reason.is_error else (StatusCode.UNSET, None))
    await settle()
    assert (engine.pulls, engine.closed) == (2, 1)
    assert await collect(stream) == []
    assert (engine.pulls, engine.closed) == (2, 1)


@pytest.mark.rows("S2", "S7")
@pytest.mark.parametrize("end", [stop(), Disconnected("gone"), 60], ids=["stop", "error", "drop"])
@virtual
async def test_a_slow_close_does_not_delay_the_terminal(end: Step) -> None:
    """In one task, under a timeout of its own; the terminal does not wait for it, ``aclose`` does."""
    tasks: list[object] = []

    async def release(_: RequestContext) -> None:
        tasks.append(asyncio.current_task())
        with suppress(TimeoutError):
            async with asyncio.timeout(3):
                await asyncio.sleep(60)
        tasks.append(asyncio.current_task())

    engine = ScriptedEngine(token(1), end, closing=[release, 2])
    stream = await adapter_of(engine).generate(request())
    for _ in range(1 if end == 60 else 2):
        await anext(stream)
    await settle()
    if not isinstance(end, Exception):
        assert now() == engine.closed == 0
    await stream.aclose()
    assert (now(), engine.closed) == (5, 1)
    assert isinstance(tasks[0], asyncio.Task)
    assert tasks[0] is tasks[1]


@pytest.mark.rows("S2")
@virtual
async def test_a_failing_close_does_not_affect_the_stream(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What the engine's ``finally`` raises is logged by its class; the consumer has its items."""
    engine = ScriptedEngine(token(1), stop(), closing=[0, Disconnected("leak")])
    stream = await adapter_of(engine).generate(request())
    assert tokens_of(await collect(stream)) == [[1], []]
    await stream.aclose()
    assert [record.message for record in caplog.records] == [
        "closing the source of a stream failed"
    ]
    assert caplog.text.splitlines()[-1] == "rx_backend.errors.Disconnected"


# Failures.


@pytest.mark.rows("S5", "P4")
@pytest.mark.reference(
    "adapter_engine_setup_error_propagates", "adapter_surfaces_typed_invalid_argument_error"
)
@pytest.mark.parametrize(("raised", "kind"), FAILURES)
@virtual
async def test_a_setup_failure_reaches_the_caller(
    raised: Exception, kind: type[BackendError]
) -> None:
    """From a coroutine or from ``generate`` itself: typed, with its cause, and on the span."""

    class Refusing:
        def generate(self, *_: object) -> object:
            raise raised

    for engine in (
        ScriptedEngine(setup=[0, raised]),
        ScriptedEngine(setup=[1, raised]),
        Refusing(),
    ):
        spans = Spans()
        with pytest.raises(BackendError) as caught:
            await adapter_of(engine, spans=spans).generate(request())
        assert str(caught.value) == f"Backend{kind.kind}: it broke"
        assert caught.value is raised or caught.value.__cause__ is raised
        assert rows_of(spans.one()) == {**ENTRY, "error_kind": "setup_failed"}
        assert status_of(spans.one()) == (StatusCode.ERROR, "setup_failed")


@pytest.mark.rows("S6", "E3", "P4")
@pytest.mark.reference(
    "adapter_forwards_typed_mid_stream_error_as_annotated_error",
    "auto_span_records_error_kind_on_typed_error",
)
@pytest.mark.parametrize(("raised", "kind"), FAILURES)
@virtual
async def test_a_failure_in_mid_stream_is_one_error_item(
    raised: Exception, kind: type[BackendError]
) -> None:
    """After any number of chunks it is the last item, of its kind, with its cause; the span says so."""
    for at in range(3):
        engine = ScriptedEngine(*[token(7)] * at, 1, raised, token(8))
        served = await serve(engine)
        assert served.tokens == [[7]] * at
        last = served.last
        assert (last.data, last.event, last.comment) == (None, "error", ["it broke"])
        assert isinstance(last.error, kind)
        assert last.error is raised or last.error.__cause__ is raised
        assert engine.closed == 1
        assert served.row["error_kind"] == f"Backend({kind.kind})"
        assert "finish_reason" not in served.row
        assert served.row["output_tokens"] == at
        assert served.status == (StatusCode.ERROR, f"Backend({kind.kind})")


@pytest.mark.rows("S5", "S6", "P7")
@pytest.mark.parametrize("interrupt", INTERRUPTS)
@pytest.mark.parametrize("where", ["setup", "script"])
def test_interrupts_are_never_items(interrupt: type[BaseException], where: str) -> None:
    """An interrupt out of the engine reaches the consumer as it is, and is a drop."""
    spans = Spans()
    engine = (
        ScriptedEngine(setup=[1, interrupt()])
        if where == "setup"
        else ScriptedEngine(token(1), interrupt())
    )

    @virtual
    async def main() -> None:
        await collect(await adapter_of(engine, spans=spans).generate(request()))

    with pytest.raises(interrupt):
        main()
    assert engine.closed == (where == "script")
    assert status_of(spans.one()) == DROPPED


# The engine contract, and the shapes that an answer may have.


class Minimal(LLMEngine):
    """An engine that has only what it must have."""

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model="minimal")

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        for token_id in request.token_ids:
            await asyncio.sleep(1)
            yield token(token_id)
        yield stop()


async def generator() -> AsyncGenerator[object]:
    yield token(1)
    await asyncio.sleep(0)
    yield token(2)
    yield stop()


class Answering:
    """An engine, by its methods alone, that answers with what a function returns."""

    def __init__(self, answer: Callable[[], object]) -> None:
        self._answer = answer

    def generate(self, request: PreprocessedRequest, context: RequestContext) -> object:
        return self._answer()


@pytest.mark.rows("E1")
@virtual
async def test_one_engine_serves_many_streams_at_a_time() -> None:
    """A hundred requests to one started engine run beside each other, each with its own tokens."""
    engine = Minimal()
    assert check_config(await engine.start(0)).model == "minimal"
    adapter = adapter_of(engine)
    streams = [await adapter.generate(request(prompt)) for prompt in range(100)]
    answers = await asyncio.gather(*map(collect, streams))
    assert [len(items) for items in answers] == [prompt + 1 for prompt in range(100)]
    assert asyncio.get_running_loop().time() == 99
    await engine.cleanup()


@pytest.mark.rows("E1")
@pytest.mark.parametrize(
    ("config", "found"),
    [
        (EngineConfig(model=""), "model='' in EngineConfig"),
        (EngineConfig(model=" "), "model=' ' in EngineConfig"),
        (None, "NoneType"),
        ({"model": "m"}, "dict"),
        ("m", "str"),
    ],
    ids=["empty", "blank", "none", "mapping", "text"],
)
def test_a_config_must_name_its_model(config: object, found: str) -> None:
    """A config without a model name is refused, with what was found instead."""
    with pytest.raises(InvalidArgument, match=f"non-empty model name, got {found}$"):
        check_config(cast("EngineConfig", config))


@pytest.mark.rows("E1")
@pytest.mark.parametrize("wrong", ["4096", -5, 0.5, True, [1], 10**30], ids=repr)
@pytest.mark.parametrize(
    "name", ["context_length", "kv_cache_block_size", "bootstrap_port", "model_aliases"]
)
def test_the_fields_of_a_config_must_fit(name: str, wrong: object) -> None:
    """The runtime would say what it can't convert, and mostly not where."""
    config = EngineConfig(model="m", **cast("dict[str, Any]", {name: wrong}))
    with pytest.raises(InvalidArgument, match=rf"Expected .* at `\$\.{name}"):
        check_config(config)


@pytest.mark.rows("E1")
def test_a_config_may_be_of_another_class() -> None:
    """What it lacks is unknown; a number may be 0, and what it has for the runtime any JSON."""
    config = SimpleNamespace(model="m", context_length=0, runtime_data={"any": [None]})
    checked = check_config(cast("EngineConfig", config))
    assert checked == EngineConfig(model="m", context_length=0, runtime_data={"any": [None]})


@pytest.mark.rows("E1", "E2", "E5")
@pytest.mark.parametrize("missing", ["start", "generate", "cleanup"])
def test_an_engine_without_a_required_method_is_rejected(missing: str) -> None:
    """The message names the class and the method, before anything of the engine's is called."""
    methods = dict.fromkeys({"start", "generate", "cleanup"} - {missing}, print)
    bare: Any = type("Bare", (), methods)()
    with pytest.raises(InvalidArgument, match=f"engine: Bare has no method {missing}: derive it"):
        check_methods(bare)
    check_methods(SampleEngine())


@pytest.mark.rows("E2")
@pytest.mark.parametrize("answer", [None, 5, [token(1)], iter([token(1)]), "text"])
@pytest.mark.parametrize("is_awaited", [False, True], ids=["plain", "awaited"])
@virtual
async def test_generate_must_return_a_stream(answer: object, is_awaited: bool) -> None:
    """Anything else is refused; the message names the engine and what it gave."""

    async def later() -> object:
        return answer

    engine = cast("LLMEngine", Answering(later if is_awaited else lambda: answer))
    expected = (
        f"Answering.generate must return an async iterator of chunks, got {type(answer).__name__}"
    )
    with pytest.raises(InvalidArgument, match=expected):
        await open_chunks(engine, request(), RequestContext())


@pytest.mark.rows("E5")
@virtual
async def test_optional_methods_have_safe_defaults() -> None:
    """An engine of two methods can be aborted, drained, asked, and cleaned up twice or unstarted."""
    engine = Minimal()
    await engine.abort(RequestContext())
    await engine.drain()
    assert await engine.is_quiescent() is True
    assert await engine.health_check_payload() is None
    await engine.cleanup()
    await engine.cleanup()


@pytest.mark.rows("E5", "A7")
@virtual
async def test_an_engine_may_omit_abort() -> None:
    """An object that only has ``generate`` is served, and stopping its requests is no complaint."""
    context = RequestContext()
    with capture_logs() as logs:
        stream = await adapter_of(Answering(generator)).generate(request(), context)
        context.stop_generating()
        assert tokens_of(await collect(stream)) == [[1], [2], []]
        await asyncio.sleep(1)
    assert [log for log in logs if log["log_level"] == "warning"] == []
