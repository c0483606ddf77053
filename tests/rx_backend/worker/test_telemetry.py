"""A worker's telemetry at a real receiver, beside that of the runtime."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.otlp.receiver import Receiver
from tests.rx_backend.worker._processes import START_S, serve
from tests.rx_backend.worker.engines import MODEL

pytestmark = [pytest.mark.needs("dynamo"), pytest.mark.timeout(90)]

TRACE_ID, CLIENT_SPAN_ID = "1" * 32, "2" * 16


@pytest.mark.parametrize("parser", [[], ["--reasoning-parser", "basic"]])
def test_a_request_is_part_of_its_clients_trace(
    parser: list[str], receiver: Receiver, tmp_path: Path
) -> None:
    """From the client's span over the runtime's own spans to ours: one line of parents."""
    flags = ["--frontend", "--grace-s", "0", "--otlp", receiver.grpc, *parser]
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
    unwanted = ("were lost", "runtime configuration")
    assert not [line for line in served.seen if any(part in line for part in unwanted)]
