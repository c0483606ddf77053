"""A failure is found in the worker's log by the ids that the client has."""

from __future__ import annotations

from pathlib import Path

import pytest
from openai import APIError

from tests.otlp.receiver import Receiver
from tests.rx_backend.worker._processes import START_S, serve
from tests.rx_backend.worker.engines import MODEL


@pytest.mark.needs("dynamo")
@pytest.mark.timeout(90)
def test_a_failure_is_found_by_the_clients_ids(receiver: Receiver, tmp_path: Path) -> None:
    """By the completion's id, and by the header that the client sent, which is in the answer too."""
    flags = ("--frontend", "--grace-s", "0", "--otlp", receiver.grpc)
    with serve(tmp_path, "CountingEngine", *flags) as served:
        served.line("curl -N", START_S)
        with served.client() as client:
            answer = client.chat.completions.with_raw_response.create(
                model=MODEL,
                messages=[{"role": "user", "content": "later it fails"}],
                stream=True,
                extra_headers={"x-request-id": "mine-7"},
            )
            assert answer.headers["x-request-id"] == "mine-7"
            chunks = iter(answer.parse())
            completion_id = next(chunks).id
            with pytest.raises(APIError):
                list(chunks)
        line = served.line("request failed")
        served.signal()
        assert served.ended() == 0
    words = line.split()
    assert f"request_id={completion_id.removeprefix('chatcmpl-')}" in words
    assert "x_request_id=mine-7" in words
    assert "error_class=RuntimeError" in words
