"""`rx_backend.protocols` and `rx_backend.errors` against the real Dynamo runtime."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from rx_backend.errors import KINDS, InvalidArgument
from rx_backend.protocols import (
    Annotated,
    FinishReason,
    LLMEngineOutput,
    PreprocessedRequest,
    SamplingOptions,
    convert_annotated,
    convert_output,
    convert_request,
    to_builtins,
)
from tests.rx_backend.wire_strategies import outputs, requests

# The class that the runtime's client names for each kind.
CLASSES = {
    "Unknown": "Internal",
    "InvalidArgument": "InvalidRequest",
    "CannotConnect": "Unavailable",
    "Disconnected": "Unavailable",
    "ConnectionTimeout": "DeadlineExceeded",
    "ResponseTimeout": "DeadlineExceeded",
    "Cancelled": "Cancelled",
    "EngineShutdown": "Unavailable",
    "StreamIncomplete": "Unavailable",
}


class Runtime:
    """The process with the runtime; an exchange takes some milliseconds."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._endpoints = itertools.count()

    def exchange(self, **order: Any) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin
        assert stdout
        stdin.write(json.dumps(order) + "\n")
        stdin.flush()
        line = stdout.readline()
        assert line, "the process with the runtime has ended"
        outcome: dict[str, Any] = json.loads(line)
        return outcome

    def request(self, request: object) -> dict[str, Any]:
        """Return the request as an engine behind the runtime's worker sees it."""
        (seen,) = self.exchange(request=request, chunks=[{"token_ids": []}])["seen"]
        return seen

    def chunk(self, chunk: object) -> dict[str, Any]:
        """Return the chunk as a client of the runtime's worker gets it."""
        (item,) = self.exchange(request={"token_ids": [1]}, chunks=[chunk])["items"]
        return item["data"]

    def handler(self, **order: Any) -> dict[str, Any]:
        """Return what a client gets of a handler's items, or of its error."""
        return self.exchange(endpoint=f"e{next(self._endpoints)}", **order)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    folder = tmp_path_factory.mktemp("dynamo")
    environment = {
        **os.environ,
        "DYN_DISCOVERY_BACKEND": "file",
        "DYN_EVENT_PLANE": "zmq",
        "DYN_FILE_KV": str(folder / "discovery"),
        "DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS": "0",
        "DYN_REQUEST_PLANE": "tcp",
        "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
        "DYN_TCP_RPC_HOST": "127.0.0.1",
    }
    log = folder / "log"
    with (
        log.open("w", encoding="utf-8") as stderr,
        subprocess.Popen(
            [sys.executable, "-m", "tests.rx_backend.dynamo_child"],
            cwd=Path(__file__).parents[2],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            encoding="utf-8",
        ) as process,
    ):
        try:
            yield Runtime(process)
            assert process.stdin
            process.stdin.close()
            assert process.wait(timeout=20) == 0, log.read_text(encoding="utf-8")[-5000:]
        finally:
            process.kill()


@given(request=requests())
@settings(max_examples=40, deadline=None)
def test_a_request_round_trips_through_the_runtime(
    runtime: Runtime, request: PreprocessedRequest
) -> None:
    """The runtime parses our request, and what it writes equals it, key by key."""
    seen = runtime.request(to_builtins(request))
    assert seen == to_builtins(request)
    assert convert_request(seen) == request


def test_a_minimal_request_gets_the_runtimes_defaults(runtime: Runtime) -> None:
    """What a health check leaves out is filled in alike."""
    wire = {"token_ids": [1], "_HEALTH_CHECK": True}
    assert runtime.request(wire) == to_builtins(convert_request(wire))


def test_the_runtime_rounds_fractions_and_we_keep_what_it_sends(runtime: Runtime) -> None:
    """A temperature of 0.7 reaches the engine with the 32 bits that the runtime has for it."""
    options = SamplingOptions(temperature=0.7)
    seen = runtime.request(
        to_builtins(PreprocessedRequest(token_ids=[1], sampling_options=options))
    )
    assert convert_request(seen).sampling_options.temperature == 0.699999988079071
    assert to_builtins(convert_request(seen)) == seen


@given(chunk=outputs())
@settings(max_examples=60, deadline=None)
def test_a_chunk_round_trips_through_the_runtime(runtime: Runtime, chunk: LLMEngineOutput) -> None:
    """The runtime parses our chunk, and what its client gets equals it; a missing index is 0."""
    if chunk.index is None:
        chunk.index = 0
    received = runtime.chunk(to_builtins(chunk))
    assert received == to_builtins(chunk)
    assert convert_output(received) == chunk


@pytest.mark.rows("E2")
@pytest.mark.parametrize(
    "reason",
    [
        *("eos", "stop", "length", "cancelled", "abort", "content_filter"),
        *("error: boom", "error: ", {"error": "boom"}, None),
    ],
)
def test_an_engines_dict_means_the_same_to_the_runtime(runtime: Runtime, reason: object) -> None:
    """Every finish reason that the runtime reads, we read alike."""
    wire = {"token_ids": [5], "finish_reason": reason, "index": 0}
    assert runtime.chunk(wire) == to_builtins(convert_output(wire))


@pytest.mark.rows("TY-finish")
@pytest.mark.parametrize("word", ["tool_calls", "Stop", "max_tokens", "error:boom", ""])
def test_an_unknown_finish_reason_is_written_as_one_the_runtime_accepts(
    runtime: Runtime, word: str
) -> None:
    """What an engine calls its end in its own words reaches the runtime in the runtime's."""
    wire = {"token_ids": [5], "finish_reason": word, "index": 0}
    assert "error" in runtime.exchange(request={"token_ids": [1]}, chunks=[wire])
    chunk = convert_output(wire)
    assert convert_output(runtime.chunk(to_builtins(chunk))) == chunk


@pytest.mark.rows("E2")
@pytest.mark.parametrize(
    "wire",
    [
        {"token_ids": None},
        {"token_ids": [-1]},
        {"token_ids": [2**32]},
        {"token_ids": [1.5]},
        {"token_ids": ["1"]},
        {"token_ids": [], "finish_reason": {"stop": None}},
        {"token_ids": [], "finish_reason": {"error": 5}},
        {"token_ids": [], "finish_reason": 5},
        {"token_ids": [], "index": -1},
        {"token_ids": [], "output_type": "smell"},
        {"token_ids": [], "completion_usage": {"prompt_tokens": 1}},
        {"token_ids": [], "worker_trace_link": {"trace_id": "a"}},
    ],
)
def test_requests_that_the_runtime_rejects_are_rejected(
    runtime: Runtime, wire: dict[str, Any]
) -> None:
    """A malformed chunk fails here, by name of the field, before it fails there."""
    outcome = runtime.exchange(request={"token_ids": [1]}, chunks=[wire])
    assert outcome["error"]["text"].startswith("InvalidRequest: ")
    with pytest.raises(InvalidArgument, match=r"^BackendInvalidArgument: \$\."):
        convert_output(wire)


@pytest.mark.rows("S6")
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_an_error_item_is_the_runtimes_error(runtime: Runtime, kind: str) -> None:
    """Our error item and Dynamo's exception of the kind reach the client as the same error."""
    error = KINDS[kind]("boom")
    error.__cause__ = KeyError("k")
    sent = runtime.handler(items=[to_builtins(Annotated.from_error(error))])
    raised = runtime.handler(raises=kind, message="boom")
    assert sent == raised
    # The client has an exception of its own for this one kind.
    own = kind == "InvalidArgument"
    assert sent["error"]["text"] == ("boom" if own else f"{CLASSES[kind]}: boom")
    assert sent["error"]["type"] == ("InvalidArgument" if own else "ValueError")
    assert sent["items"] == []


def test_items_pass_the_runtime_unchanged(runtime: Runtime) -> None:
    """Data, events and comments arrive as they were sent."""
    items: list[Annotated[LLMEngineOutput]] = [
        Annotated(LLMEngineOutput.token(7)),
        Annotated(None, None, "worker_id", ["3"]),
        Annotated(LLMEngineOutput([8], finish_reason=FinishReason.EOS), None, "last", ["bye", "!"]),
    ]
    outcome = runtime.handler(items=[to_builtins(item) for item in items])
    assert [convert_annotated(item) for item in outcome["items"]] == items
