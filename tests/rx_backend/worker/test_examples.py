"""The example folder does what its texts promise."""

from __future__ import annotations

import asyncio
import json
import shlex
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from rx_backend.worker.frontend import until_listed
from tests.rx_backend.worker._processes import ROOT, START_S, STEP_S, frontend, serve, words

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
        assert "request " in served.line("23 tokens")


def test_the_pair_of_workers_continues_from_the_prompt(tmp_path: Path) -> None:
    """Prefill hands the number over, decode continues with it, and both end well."""
    target, cwd = "disaggregated_engine:CountingEngine", ROOT / "examples"
    with (
        serve(tmp_path, target, "--mode", "prefill", "--grace-s", "0", cwd=cwd) as prefill,
        serve(tmp_path, target, "--mode", "decode", "--grace-s", "0", cwd=cwd) as decode,
        frontend(tmp_path) as front,
        front.client() as client,
    ):
        prefill.line("serving", START_S)
        decode.line("serving", START_S)
        asyncio.run(until_listed("127.0.0.1", front.port, "counting"))
        answer = client.with_options(max_retries=9).chat.completions.create(
            model="counting",
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=4,
            stream=True,
        )
        start = len("user: Hello\nassistant: ")
        assert list(words(answer)) == [*map(str, range(start, start + 4)), "length"]
        for worker in (prefill, decode):
            worker.signal()
            assert worker.ended() == 0
