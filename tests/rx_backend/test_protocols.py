"""`rx_backend.protocols`: construction, JSON in, JSON out. The runtime itself is asked next door."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import threading
import weakref
from collections.abc import Callable, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators import IdleTimeout
from rx_backend.errors import (
    BackendError,
    ConnectionTimeout,
    EngineShutdown,
    InvalidArgument,
    Unknown,
    as_backend_error,
    causes,
)
from rx_backend.protocols import (
    Annotated,
    CompletionUsage,
    FinishReason,
    LLMEngineOutput,
    PrefillResult,
    PreprocessedRequest,
    StopConditions,
    TraceLink,
    convert_annotated,
    convert_output,
    convert_request,
    to_builtins,
    usage,
)
from tests.logs import capture_logs
from tests.rx_backend.wire_strategies import (
    errors,
    finish_reasons,
    letters,
    outputs,
    requests,
    texts,
    unknown_keys,
)
from tests.wire import decode_annotated, decode_output, decode_request, encode

EMPTY_CHUNK: dict[str, Any] = {
    "token_ids": [],
    "tokens": None,
    "text": None,
    "output_type": "text",
    "cum_log_probs": None,
    "log_probs": None,
    "top_logprobs": None,
    "finish_reason": None,
    "index": None,
}


CONSTANTS = {
    "eos": (FinishReason.EOS, "EoS"),
    "stop": (FinishReason.STOP, "Stop"),
    "length": (FinishReason.LENGTH, "Length"),
    "cancelled": (FinishReason.CANCELLED, "Cancelled"),
    "content_filter": (FinishReason.CONTENT_FILTER, "ContentFilter"),
}


def refusal(convert: Callable[[Any], object], value: object) -> str:
    """Return the message with which *convert* refuses a value."""
    with pytest.raises(InvalidArgument) as caught:
        convert(value)
    return caught.value.message


# Finish reasons.


@pytest.mark.rows("P3")
@pytest.mark.parametrize("kind", CONSTANTS)
def test_a_finish_reason_has_a_wire_value_and_a_span_value(kind: str) -> None:
    """Each constant is its word on the wire and its own on the span, and parses to itself."""
    reason, span_value = CONSTANTS[kind]
    assert (reason.kind, reason.message, reason.is_error) == (kind, None, False)
    assert (reason.to_json(), str(reason), reason.span_value) == (kind, kind, span_value)
    assert FinishReason.parse(kind) is reason


@pytest.mark.rows("P3")
def test_an_error_carries_its_message() -> None:
    """The message is in the wire form, in the text and, quoted, on the span."""
    reason = FinishReason.error('say "boom"\n')
    assert (reason.kind, reason.message, reason.is_error) == ("error", 'say "boom"\n', True)
    assert reason.to_json() == {"error": 'say "boom"\n'}
    assert reason.span_value == 'Error("say \\"boom\\"\\n")'
    assert FinishReason.error("boom").span_value == 'Error("boom")'


@pytest.mark.rows("TY-finish")
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("abort", FinishReason.CANCELLED),
        ("error: boom", FinishReason.error("boom")),
        ("error: ", FinishReason.error("")),
        ("error:boom", FinishReason.error("boom")),
        ("error: error: x", FinishReason.error("error: x")),
        ("model_length", FinishReason.LENGTH),
        ("max_tokens", FinishReason.LENGTH),
        ({"error": "boom"}, FinishReason.error("boom")),
        (MappingProxyType({"error": "boom"}), FinishReason.error("boom")),
        (FinishReason.EOS, FinishReason.EOS),
    ],
)
def test_a_finish_reason_is_read_in_every_form(given: Any, expected: FinishReason) -> None:
    """Engines may write text, among it abort and error: message, or the wire form."""
    assert FinishReason.parse(given) == expected


# Text that names no finish reason: what engines say for themselves, and anything at all.
KNOWN_WORDS = {*CONSTANTS, "abort", "error", "model_length", "max_tokens"}


words = (
    st.sampled_from(["Stop", "STOP", "tool_calls", "repetition", "stop ", " error", "errors", "\n"])
    | st.text(letters, min_size=1)
    | st.text("ab", min_size=70, max_size=80)
).filter(lambda word: word not in KNOWN_WORDS and not word.startswith("error:"))


@pytest.mark.rows("TY-finish")
@given(words, st.none() | texts | st.integers())
def test_an_unknown_finish_reason_means_stop(word: str, stop_reason: str | int | None) -> None:
    """It means stop and is kept as the stop reason, unless the engine set one; tokens are kept."""
    assert FinishReason.parse(word) is FinishReason.STOP
    wire = {"token_ids": [1, 2], "finish_reason": word, "stop_reason": stop_reason}
    kept = word if stop_reason is None else stop_reason
    expected = LLMEngineOutput([1, 2], finish_reason=FinishReason.STOP, stop_reason=kept)
    made = LLMEngineOutput([1, 2], finish_reason=cast("Any", word), stop_reason=stop_reason)
    item = {"data": wire}
    assert convert_output(wire) == convert_output(MappingProxyType(wire)) == expected
    assert convert_output(made) == decode_output(json.dumps(wire)) == expected
    assert convert_annotated(item) == decode_annotated(json.dumps(item)) == Annotated(expected)
    assert made.finish_reason == word, "the chunk of the engine itself is not touched"


@pytest.mark.rows("TY-finish", "E2")
@given(finish_reasons, st.none() | texts)
def test_a_known_finish_reason_keeps_the_stop_reason(
    reason: FinishReason, stop_reason: str | None
) -> None:
    """Only a word that would be lost is kept, in whatever form a chunk or a dict has the reason."""
    expected = LLMEngineOutput(finish_reason=reason, stop_reason=stop_reason)
    for form in (reason, str(reason), reason.to_json()):
        wire = {"finish_reason": form, "stop_reason": stop_reason}
        assert convert_output(wire) == expected
    made = LLMEngineOutput(finish_reason=cast("Any", str(reason)), stop_reason=stop_reason)
    assert convert_output(made) == expected


@pytest.mark.rows("TY-finish")
def test_an_enum_member_is_a_finish_reason() -> None:
    """Engines have enumerations of their own, whose members are text."""

    class Reason(str, Enum):  # noqa: UP042 - the text of its members is not their value
        LENGTH = "length"
        TOOLS = "tool_calls"

    assert FinishReason.parse(Reason.LENGTH) is FinishReason.LENGTH
    chunk = convert_output({"token_ids": [], "finish_reason": Reason.TOOLS})
    assert (chunk.finish_reason, chunk.stop_reason) == (FinishReason.STOP, "tool_calls")
    assert type(chunk.stop_reason) is str


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Return the words that were logged, none so far."""
    remembered: dict[str, object] = {}
    monkeypatch.setattr("rx_backend.protocols._finish_reason._warned", remembered)
    return remembered


@pytest.mark.rows("TY-finish")
def test_an_unknown_finish_reason_is_logged_once(warned: dict[str, object]) -> None:
    """From however many threads; an engine that makes up words fills neither the memory nor the log."""
    barrier = threading.Barrier(4, timeout=10)

    def read() -> None:
        barrier.wait()
        for word in ("tool_calls", "stop") * 50:
            convert_output({"token_ids": [], "finish_reason": word})

    with capture_logs() as logs:
        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number in range(1000):
            FinishReason.parse(f"{number:03} {'x' * 10_000}")
    first = logs[0]
    assert (first["log_level"], first["finish_reason"]) == ("warning", "tool_calls")
    assert len(logs) == len(warned) == 100
    assert len({entry["finish_reason"] for entry in logs}) == 100
    assert max(map(len, warned)) == 60


@pytest.mark.rows("TY-finish")
@pytest.mark.parametrize(
    "given",
    [
        *(None, 5, 1.5, True, b"stop", (1,), ["stop"], object()),
        *({}, {"stop": None}, {"error": 5}, {"error": "a", "more": 1}, {"type": "stop"}),
    ],
    ids=repr,
)
def test_a_finish_reason_of_another_type_is_rejected(given: Any) -> None:
    """It is an InvalidArgument that names the field, what was expected and what came."""
    message = refusal(FinishReason.parse, given)
    assert message.startswith('finish_reason: expected one of "eos", "stop"')
    assert message.endswith(f"got {given!r}")
    if given is not None:
        assert "finish_reason: expected one of" in refusal(
            convert_output, {"token_ids": [], "finish_reason": given}
        )
        assert refusal(convert_output, LLMEngineOutput(finish_reason=given)) == message


def test_a_finish_reason_is_immutable_and_a_value() -> None:
    """It can't be changed, and equals, hashes, copies and pickles by value."""
    reason = FinishReason.error("boom")
    with pytest.raises(AttributeError, match="immutable"):
        reason.message = "other"
    with pytest.raises(AttributeError, match="immutable"):
        del reason.kind
    assert {reason: 1}[FinishReason.error("boom")] == 1
    assert reason != FinishReason.error("bang")
    assert reason != "error: boom"
    for twin in (copy.copy(reason), copy.deepcopy(reason), pickle.loads(pickle.dumps(reason))):
        assert twin == reason
    assert pickle.loads(pickle.dumps(FinishReason.STOP)) is FinishReason.STOP
    assert repr([reason, FinishReason.EOS]) == "[FinishReason.error('boom'), FinishReason.EOS]"


@pytest.mark.parametrize("args", [("error",), ("stop", "m"), ("bogus",)])
def test_an_invalid_finish_reason_is_rejected(args: tuple[str, ...]) -> None:
    """A message goes with errors alone, and there are six kinds."""
    with pytest.raises(InvalidArgument, match=r"^BackendInvalidArgument: finish_reason: "):
        FinishReason(*args)


# Chunks.


@pytest.mark.rows("E2", "TY-output")
@pytest.mark.parametrize(
    ("chunk", "changed"),
    [
        (LLMEngineOutput(), {}),
        (LLMEngineOutput.token(7), {"token_ids": [7]}),
        (LLMEngineOutput.stop(), {"finish_reason": "stop"}),
        (LLMEngineOutput.length(), {"finish_reason": "length"}),
        (LLMEngineOutput.cancelled(), {"finish_reason": "cancelled"}),
        (LLMEngineOutput.error("boom"), {"finish_reason": {"error": "boom"}}),
        (
            LLMEngineOutput.stop().with_tokens([7, 8]).with_usage(usage(3, 2)),
            {
                "token_ids": [7, 8],
                "finish_reason": "stop",
                "completion_usage": to_builtins(CompletionUsage(3, 2, 5)),
            },
        ),
    ],
)
def test_a_chunk_is_written_as_the_runtime_writes_it(
    chunk: LLMEngineOutput, changed: dict[str, Any]
) -> None:
    """Nine fields are always there, the others only when they are set."""
    assert json.loads(encode(chunk)) == EMPTY_CHUNK | changed
    assert to_builtins(chunk) == EMPTY_CHUNK | changed
    assert decode_output(encode(chunk)) == chunk


def test_chunks_are_changed_in_place_and_share_nothing() -> None:
    """Setters return the chunk; its empty list is its own; the collector tracks neither it nor items."""
    chunk = LLMEngineOutput.stop()
    assert chunk.with_tokens([1]) is chunk.with_usage(usage(1, 1)) is chunk
    assert (chunk.token_ids, chunk.completion_usage) == ([1], CompletionUsage(1, 1, 2))
    first, second = LLMEngineOutput(), LLMEngineOutput()
    first.token_ids.append(1)
    to_builtins(second)["token_ids"].append(2)
    assert second.token_ids == to_builtins(LLMEngineOutput())["token_ids"] == []
    assert not gc.is_tracked(chunk)
    assert not gc.is_tracked(Annotated(chunk))
    assert gc.is_tracked(Annotated.from_error(ValueError("v")))


@pytest.mark.rows("TY-output")
@given(outputs(), st.none() | unknown_keys)
def test_a_chunk_survives_the_wire(chunk: LLMEngineOutput, unknown: dict[str, Any] | None) -> None:
    """What is decoded equals what was encoded, with keys of a later runtime where they were."""
    wire = {**to_builtins(chunk), **(unknown or {})}
    decoded = decode_output(json.dumps(wire))
    assert decoded.unknown == unknown
    assert json.loads(encode(decoded)) == wire
    assert convert_output(wire) == decoded
    assert encode(decode_output(encode(decoded))) == encode(decoded)
    assert pickle.loads(pickle.dumps(decoded)) == decoded
    assert unknown is not None or decoded == decode_output(encode(chunk)) == chunk


def test_a_chunk_is_not_converted() -> None:
    """Conversion returns a chunk, and a request, as it is."""
    chunk, request = LLMEngineOutput.token(1), PreprocessedRequest(token_ids=[1])
    assert convert_output(chunk) is chunk
    assert convert_request(request) is request


@pytest.mark.rows("E2")
@pytest.mark.parametrize(
    ("wire", "message"),
    [
        ({"token_ids": [1, -2]}, "$.token_ids[1]: expected int >= 0, got -2"),
        ({"token_ids": [2**32]}, "$.token_ids[0]: expected int <= 4294967295, got 4294967296"),
        ({"token_ids": [1, "x"]}, "$.token_ids[1]: expected int, got str"),
        ({"token_ids": [True]}, "$.token_ids[0]: expected int, got bool"),
        ({"token_ids": [1.5]}, "$.token_ids[0]: expected int, got float"),
        ({"token_ids": None}, "$.token_ids: expected array, got null"),
        ({"token_ids": 7}, "$.token_ids: expected array, got int"),
        ({"index": -1}, "$.index: expected int >= 0, got -1"),
        ({"output_type": "smell"}, "$.output_type: invalid enum value 'smell'"),
        ({"log_probs": ["a"]}, "$.log_probs[0]: expected float, got str"),
        (
            {"top_logprobs": [[{"rank": 0, "logprob": 0.0}]]},
            "$.top_logprobs[0][0].token_id: required, but missing",
        ),
        (
            {"completion_usage": {"prompt_tokens": 1}},
            "$.completion_usage.completion_tokens: required, but missing",
        ),
        ({"worker_trace_link": {"trace_id": "a"}}, "$.worker_trace_link.span_id: required, "),
        ({"finish_reason": 5}, '$.finish_reason: expected one of "eos", "stop", "length"'),
        ({"finish_reason": ["b" * 99]}, f"got ['{'b' * 55}..."),
        ({"finish_reason": "tools", "stop_reason": []}, "$.stop_reason: expected int | str | null"),
        (
            "text",
            "$: expected an object, got str: a chunk is an LLMEngineOutput, or a mapping of its",
        ),
        ([1], "$: expected an object, got list: a chunk is an LLMEngineOutput"),
        (None, "$: expected an object, got NoneType: a chunk is an LLMEngineOutput"),
    ],
)
def test_a_malformed_chunk_names_the_field(wire: object, message: str) -> None:
    """The error says where, what was expected and what came."""
    assert message in refusal(convert_output, wire)


# Requests.


OPTIONS = {
    "stop_conditions": [
        *("max_tokens", "stop", "stop_token_ids", "stop_token_ids_visible"),
        *("stop_token_ids_hidden", "min_tokens", "ignore_eos", "max_thinking_tokens"),
    ],
    "sampling_options": [
        *("n", "best_of", "presence_penalty", "frequency_penalty", "repetition_penalty"),
        *("temperature", "top_p", "top_k", "min_p", "use_beam_search", "length_penalty"),
        *("seed", "include_stop_str_in_output", "guided_decoding"),
    ],
    "output_options": [
        *("logprobs", "prompt_logprobs", "skip_special_tokens", "formatted_prompt"),
        "return_tokens_as_token_ids",
    ],
}


@pytest.mark.rows("TY-request")
def test_the_smallest_request_is_written_as_the_runtime_writes_it() -> None:
    """Options are always there, null where they are not set; everything else only when it is."""
    assert json.loads(encode(PreprocessedRequest(token_ids=[1]))) == {
        "model": "",
        "token_ids": [1],
        **{part: dict.fromkeys(names) for part, names in OPTIONS.items()},
        "eos_token_ids": [],
        "mdc_sum": None,
        "annotations": [],
        "router_config_override": None,
    }


@pytest.mark.rows("H1")
def test_a_probe_payload_is_a_request() -> None:
    """A health check sends tokens and the marker alone."""
    request = convert_request({"token_ids": [1], "_HEALTH_CHECK": True})
    assert (request.model, request.token_ids, request.is_probe) == ("", [1], True)
    assert to_builtins(request)["_HEALTH_CHECK"] is True
    assert convert_request({"token_ids": [1], "is_probe": True}).is_probe is False


@pytest.mark.rows("TY-request")
@given(requests() | requests(unknown_keys))
def test_a_request_survives_the_wire(request: PreprocessedRequest) -> None:
    """What is decoded equals what was encoded, unknown keys at every level included."""
    assert decode_request(encode(request)) == request
    assert convert_request(to_builtins(request)) == request
    assert encode(decode_request(encode(request))) == encode(request)
    assert pickle.loads(pickle.dumps(request)) == request


@pytest.mark.rows("TY-request")
def test_unknown_keys_of_a_request_keep_their_place() -> None:
    """At the top and in every part that has options; none of them hides a known key."""
    unknown = {"x_later": [1], "unknown": {"a": None}}
    wire = to_builtins(
        PreprocessedRequest(token_ids=[1], prefill_result=PrefillResult(disaggregated_params=None))
    )
    wire["sampling_options"]["guided_decoding"] = {"regex": "a", **unknown}
    for part in (*OPTIONS, "prefill_result"):
        wire[part].update(unknown)
    wire.update(unknown)
    request = decode_request(json.dumps(wire))
    assert request.unknown == request.stop_conditions.unknown == unknown
    assert json.loads(encode(request)) == wire
    chunk = convert_output({"token_ids": [1]})
    chunk.unknown = {"token_ids": [9], "new": 1}
    assert to_builtins(chunk) == EMPTY_CHUNK | {"token_ids": [1], "new": 1}


def test_options_may_be_given_as_mappings() -> None:
    """What one writes as a dict becomes the typed options, checked."""
    request = PreprocessedRequest(
        token_ids=[1],
        stop_conditions={"max_tokens": 3, "later": 1},  # pyright: ignore[reportArgumentType]
    )
    assert request.stop_conditions == StopConditions(max_tokens=3, unknown={"later": 1})
    assert repr(request.stop_conditions) == "StopConditions(max_tokens=3, unknown={'later': 1})"
    with pytest.raises(InvalidArgument, match=r"\$\.stop_conditions\.max_tokens: expected"):
        PreprocessedRequest(
            token_ids=[1],
            stop_conditions={"max_tokens": "3"},  # pyright: ignore[reportArgumentType]
        )


def test_a_request_shows_only_what_is_set() -> None:
    """The text form leaves out the dozens of options that are not set."""
    request = PreprocessedRequest(token_ids=[1], migration_link=TraceLink("t", "s"))
    shown = "migration_link=TraceLink(trace_id='t', span_id='s')"
    assert repr(request) == f"PreprocessedRequest(token_ids=[1], {shown})"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_packed_tokens_are_unpacked(kind: Callable[[bytes], object]) -> None:
    """Frontends may send the prompt as 32-bit numbers, least significant byte first."""
    packed = kind(b"\x01\x00\x00\x00\x00\x01\x00\x00")
    assert convert_request({"token_ids": packed}).token_ids == [1, 256]
    message = refusal(convert_request, {"token_ids": b"\x01\x00\x00"})
    assert message == "$.token_ids: expected 4 bytes per packed token, got 3 bytes"


def test_the_id_of_a_hand_off_becomes_text() -> None:
    """A frontend that packs sends 16 bytes; text is kept."""
    place = {"bootstrap_host": "h", "bootstrap_port": 1, "bootstrap_room": 2}
    text = "00010203-0405-0607-0809-0a0b0c0d0e0f"

    def asking(handoff_id: object) -> dict[str, object]:
        return {"token_ids": [1], "bootstrap_info": {**place, "handoff_id": handoff_id}}

    infos = [convert_request(asking(each)).bootstrap_info for each in (bytes(range(16)), text)]
    assert [info and info.handoff_id for info in infos] == [text, text]
    message = refusal(convert_request, asking(b"short"))
    assert message == "$.bootstrap_info.handoff_id: expected str | null, got bytes"


@pytest.mark.rows("H1", "TY-request")
@pytest.mark.parametrize(
    ("wire", "message"),
    [
        ({}, "$.token_ids: required, but missing"),
        ({"token_ids": [-1]}, "$.token_ids[0]: expected int >= 0, got -1"),
        ({"token_ids": [], "model": None}, "$.model: expected str, got null"),
        ({"token_ids": [], "annotations": [1]}, "$.annotations[0]: expected str, got int"),
        ({"token_ids": [], "_HEALTH_CHECK": 1}, "$._HEALTH_CHECK: expected bool, got int"),
        ({"token_ids": [], "stop_conditions": 1}, "$.stop_conditions: expected object, got int"),
        (
            {"token_ids": [], "stop_conditions": {"max_tokens": -1}},
            "$.stop_conditions.max_tokens: expected int >= 0, got -1",
        ),
        (
            {"token_ids": [], "sampling_options": {"guided_decoding": {"choice": ["a", 1]}}},
            "$.sampling_options.guided_decoding.choice[1]: expected str, got int",
        ),
        (
            {"token_ids": [], "sampling_options": {"n": 256}},
            "$.sampling_options.n: expected int <= 255, got 256",
        ),
        (
            {"token_ids": [], "prefill_result": {}},
            "$.prefill_result.disaggregated_params: required, but missing",
        ),
        ({"token_ids": [], "encoder_result": [1]}, "$.encoder_result: expected object | null, got"),
        ([], "$: expected an object, got list"),
    ],
)
def test_a_malformed_request_names_the_field(wire: Any, message: str) -> None:
    """The error says where, what was expected and what came, from plain data and from JSON."""
    assert message in refusal(convert_request, wire)
    assert message in refusal(decode_request, json.dumps(wire))


# Items.


@pytest.mark.rows("TY-annotated")
def test_an_item_with_data_is_written_as_data_only() -> None:
    """What is not set is left out."""
    item = Annotated(LLMEngineOutput.token(7))
    assert not item.is_error
    assert to_builtins(item) == {"data": EMPTY_CHUNK | {"token_ids": [7]}}
    event = Annotated[LLMEngineOutput](id="1", event="llm_metrics", comment=["{}"])
    assert to_builtins(event) == {"id": "1", "event": "llm_metrics", "comment": ["{}"]}
    assert decode_annotated(encode(event)) == event


@pytest.mark.rows("S6", "TY-annotated")
def test_an_error_item_has_the_error_and_its_message() -> None:
    """It is an event named error without data, the message its comment, the typed error inside."""
    error = EngineShutdown("gone")
    item = Annotated.from_error(error)
    assert isinstance(item, Annotated)
    assert item.is_error
    assert (item.data, item.id, item.event, item.comment) == (None, None, "error", ["gone"])
    assert item.error is error
    untyped = ValueError("too long")
    typed = Annotated.from_error(untyped).error
    assert type(typed) is InvalidArgument
    assert typed.__cause__ is untyped
    with pytest.raises(KeyboardInterrupt):
        Annotated.from_error(KeyboardInterrupt())


def test_an_error_is_written_as_the_runtime_writes_it() -> None:
    """Both of the runtime's names for a kind are there; `error` is what runtime 1.6.1 sends."""
    assert to_builtins(Annotated.from_error(ConnectionTimeout("ttt"))) == {
        "event": "error",
        "comment": ["ttt"],
        "error": {
            "error_type": {"Backend": "ConnectionTimeout"},
            "class": "DeadlineExceeded",
            "reason": "backend.connection_timeout",
            "message": "ttt",
            "diagnostic": "ttt",
        },
    }
    assert to_builtins(InvalidArgument("vvv")) == {
        "error_type": {"Backend": "InvalidArgument"},
        "class": "InvalidRequest",
        "reason": "backend.invalid_argument",
        "message": "vvv",
        "diagnostic": "vvv",
        "public": {"type": "message", "message": "vvv"},
    }


@pytest.mark.parametrize(
    ("retry", "reason"),
    [(False, "request.deadline_exceeded"), (True, "backend.response_timeout")],
)
def test_a_deadline_is_final_unless_it_allows_a_retry(retry: bool, reason: str) -> None:
    """After the first reason the runtime tries no other worker; the kind is the same."""
    wire = to_builtins(as_backend_error(IdleTimeout(1.0, 7, retry=retry)))
    assert (wire["error_type"], wire["reason"]) == ({"Backend": "ResponseTimeout"}, reason)


def test_causes_of_an_error_travel_with_it() -> None:
    """Untyped causes travel as text with their class, in the runtime's form."""
    error = EngineShutdown("gone")
    error.__cause__ = KeyError("k")
    assert to_builtins(error)["caused_by"] == {
        "error_type": "Unknown",
        "class": "Internal",
        "reason": "runtime.unclassified",
        "message": "KeyError: 'k'",
        "diagnostic": "KeyError: 'k'",
    }


@given(errors)
def test_an_error_item_survives_the_wire(error: BackendError) -> None:
    """Kind, message and the chain of causes come back."""
    item = decode_annotated(encode(Annotated.from_error(error)))
    assert item.is_error
    assert gc.is_tracked(item)
    assert item.comment == [error.message]
    assert item.error is not None
    told = [(type(link), str(link)) for link in (item.error, *causes(item.error))]
    assert told == [(type(link), str(link)) for link in (error, *causes(error))]


@pytest.mark.rows("TY-annotated")
@given(outputs(), st.none() | texts, st.none() | st.lists(texts, max_size=2))
def test_an_item_survives_the_wire(
    chunk: LLMEngineOutput, event: str | None, comment: list[str] | None
) -> None:
    """What is decoded equals what was encoded."""
    item = Annotated(chunk, "id", event, comment)
    assert decode_annotated(encode(item)) == item
    assert convert_annotated(to_builtins(item)) == item


@pytest.mark.parametrize(
    ("wire", "kind"),
    [
        ({"error_type": {"Backend": "EngineShutdown"}}, "EngineShutdown"),
        ({"error_type": "Disconnected", "class": "Unavailable"}, "Disconnected"),
        ({"error_type": "WorkerUnavailable", "reason": "backend.worker_unavailable"}, "Unknown"),
        ({"class": "Cancelled", "reason": "request.cancelled"}, "Cancelled"),
        ({"reason": "backend.stream_incomplete"}, "StreamIncomplete"),
        ({"error_type": {"Backend": "Later"}}, "Unknown"),
        ({}, "Unknown"),
    ],
)
def test_errors_of_other_runtimes_are_read(wire: dict[str, Any], kind: str) -> None:
    """Older, newer and the runtime's own errors get the nearest kind, with their message."""
    item = convert_annotated({"id": "7", "event": "error", "error": {**wire, "message": "m"}})
    assert (item.id, item.event) == ("7", "error")
    assert item.error is not None
    assert (item.error.kind, item.error.message, item.comment) == (kind, "m", None)


@pytest.mark.parametrize(
    ("wire", "message"),
    [
        ({"data": {"token_ids": [-1]}}, "$.data.token_ids[0]: expected int >= 0, got -1"),
        ({"comment": "c"}, "$.comment: expected array | null, got str"),
        ({"error": "boom"}, "$.error: expected an object, got str"),
        ({"error": {"caused_by": 1}}, "$.error.caused_by: expected an object, got int"),
        ([], "$: expected an object, got list"),
    ],
)
def test_a_malformed_item_names_the_field(wire: Any, message: str) -> None:
    """The path starts at the item, also for a field of its chunk."""
    assert refusal(convert_annotated, wire) == message


def test_a_cycle_through_an_error_item_is_collected() -> None:
    """An item that its own error leads back to does not leak."""

    class Marked(Unknown):
        pass

    error = Marked("m")
    gone = weakref.ref(error)
    error.item = Annotated.from_error(error)  # pyright: ignore[reportAttributeAccessIssue]
    del error
    gc.collect()
    assert gone() is None


# Encoding in general.


def test_plain_data_and_parts_can_be_encoded_too() -> None:
    """Each has a wire form; what JSON lacks is null, a kind of one's own Unknown, an object an error."""
    assert encode({"a": [1, None]}) == b'{"a":[1,null]}'
    assert encode(FinishReason.error("boom")) == b'{"error":"boom"}'
    assert encode(TraceLink("t", "s")) == b'{"trace_id":"t","span_id":"s"}'
    assert to_builtins(usage(3, 2))["total_tokens"] == 5
    assert to_builtins([FinishReason.STOP]) == ["stop"]
    chunk = LLMEngineOutput(log_probs=[float("nan"), float("-inf"), -1.0])
    assert json.loads(encode(chunk))["log_probs"] == [None, None, -1.0]
    special = type("Special", (BackendError,), {"kind": "Special"})
    assert to_builtins(special("odd"))["error_type"] == {"Backend": "Unknown"}
    for chunk in (LLMEngineOutput(), LLMEngineOutput.stop()):
        chunk.engine_data = {"pool": object()}
        with pytest.raises(TypeError, match="object"):
            encode(chunk)


def test_wire_fields_have_their_wire_names() -> None:
    """Names are the runtime's; only the probe marker has another one here."""
    renamed = {
        field.name: field.encode_name
        for kind in (PreprocessedRequest, LLMEngineOutput)
        for field in msgspec.structs.fields(kind)
        if field.name != field.encode_name
    }
    assert renamed == {"is_probe": "_HEALTH_CHECK"}


def test_a_mapping_is_not_changed_by_conversion() -> None:
    """The caller's dict stays as it was."""
    wire: Mapping[str, Any] = {"token_ids": b"\x01\x00\x00\x00", "stop_conditions": {"x": 1}}
    before = copy.deepcopy(wire)
    convert_request(wire)
    assert wire == before
