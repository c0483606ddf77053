"""The example folder does what its texts promise."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from tests.rx_backend.worker._processes import ROOT, START_S, STEP_S, serve

pytestmark = [pytest.mark.needs("dynamo"), pytest.mark.timeout(90)]


def test_the_printed_curl_line_streams_tokens(tmp_path: Path) -> None:
    """Asked as the command says, the example engine repeats the question, a token at a time."""
    flags = ("--frontend", "--grace-s", "0", "--pipeline", "pipelines:reporting")
    with serve(
        tmp_path, "echo_engine:EchoEngine", *flags, cwd=ROOT / "examples", RX_BACKEND_COALESCE="0"
    ) as served:
        curl, no_buffer, url, _, header, _, body = shlex.split(served.line("curl -N", START_S))
        assert [curl, no_buffer] == ["curl", "-N"]
        name, _, value = header.partition(": ")
        question = Request(url, body.encode(), {name: value})
        with urlopen(question, timeout=STEP_S) as answer:
            events = answer.read().decode().split("\n\n")
        texts = [
            choice["delta"].get("content", "")
            for event in events
            if event.startswith("data: {")
            for choice in json.loads(event.removeprefix("data: "))["choices"]
        ]
        assert "".join(texts) == "user: Hello\nassistant: "
        assert len([text for text in texts if text]) == len("user: Hello\nassistant: ")
        assert "23 tokens" in served.line("request ")
