"""A worker's telemetry at a real receiver, beside that of the runtime."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from openai import APIStatusError

from rx_backend.worker.frontend import until_listed
from tests.otlp.receiver import Link, Receiver
from tests.rx_backend.worker._processes import START_S, frontend, serve, until
from tests.rx_backend.worker.engines import MODEL

pytestmark = [pytest.mark.needs("dynamo"), pytest.mark.timeout(90)]

TRACE_ID, CLIENT_SPAN_ID = "1" * 32, "2" * 16


def test_a_request_is_part_of_its_clients_trace(receiver: Receiver, tmp_path: Path) -> None:
    """From the client's span over the runtime's own spans to ours: one line of parents."""
    flags = ["--frontend", "--grace-s", "0", "--otlp", receiver.grpc]
    # The runtime exports what it has every so many ms, and nothing at its end.
    with serve(tmp_path, "CountingEngine", *flags, OTEL_BSP_SCHEDULE_DELAY="50") as served:
        served.line("curl -N", START_S)
        with served.client() as client:
            client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": "count"}],
                max_tokens=3,
                extra_headers={"traceparent": f"00-{TRACE_ID}-{CLIENT_SPAN_ID}-01"},
            )
        for name in ("engine.generate", "handle_payload", "http-request"):
            receiver.until(lambda name=name: receiver.named(name))
        served.signal()
        assert served.ended() == 0
    (ours,) = receiver.named("engine.generate")
    assert (ours.trace_id, ours.kind, ours.status) == (TRACE_ID, "SERVER", "UNSET")
    assert ours.attributes["output_tokens"] == 3
    of_id = {span.span_id: span for span in receiver.spans}
    line = [ours.name]
    parent = ours.parent_id
    while parent in of_id:
        line.append(of_id[parent].name)
        parent = of_id[parent].parent_id
    assert line[:2] == ["engine.generate", "handle_payload"]
    assert line[-1] == "http-request"
    assert parent == CLIENT_SPAN_ID
    (requests,) = receiver.points_of("rx_backend.requests")
    assert (requests.value, requests.resource["service.name"]) == (1.0, "rx-backend")
    assert not [line for line in served.seen if "were lost" in line]


@pytest.mark.rows("T1", "T4")
def test_the_link_of_a_pair_resolves(receiver: Receiver, tmp_path: Path) -> None:
    """Prefill and decode export from processes of their own; the link names a span that is there."""
    engine = "examples.disaggregated_engine:CountingEngine"
    flags = ["--grace-s", "0", "--otlp", receiver.grpc, "--mode"]
    with ExitStack() as stack:
        enter = stack.enter_context
        workers = [enter(serve(tmp_path, engine, *flags, mode)) for mode in ("prefill", "decode")]
        front = enter(frontend(tmp_path, "--otlp", receiver.grpc))
        for worker in workers:
            worker.line("serving", START_S)
        client = enter(front.client())
        asyncio.run(until_listed("127.0.0.1", front.port, "counting"))

        def answered() -> bool:
            # A frontend lists a model a moment before it knows where the workers are.
            with suppress(APIStatusError):
                client.chat.completions.create(
                    model="counting", messages=[{"role": "user", "content": "go"}], max_tokens=3
                )
                return True
            return False

        until(answered, *workers)
        for worker in workers:
            worker.signal()
            assert worker.ended() == 0
    spans = {span.attributes["disagg_role"]: span for span in receiver.named("engine.generate")}
    prefill, decode = spans["prefill"], spans["decode"]
    assert decode.links == (Link(prefill.trace_id, prefill.span_id),)
    assert decode.trace_id == prefill.trace_id
    names = [span.resource["service.name"] for span in (prefill, decode)]
    assert names == ["rx-backend-prefill", "rx-backend-decode"]
