"""`rx-backend dynamo dynamo.vllm`: Dynamo's own vLLM worker, unmodified, behind a real frontend."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

from rx_backend.worker.frontend import until_listed
from tests.real.tiny_model import RealModel
from tests.rx_backend.worker._processes import ROOT, Served, dynamo, frontend, until

pytestmark = [
    pytest.mark.needs("vllm", "dynamo.vllm", "transformers", "gguf"),
    pytest.mark.timeout(600),
]

START_S = 500.0
MODEL = "tiny"
PROMPT = "the token of a stream"
STUBS = str(Path(__file__).with_name("stubs"))


@pytest.fixture(scope="module")
def worker(
    tiny_model: RealModel, tmp_path_factory: pytest.TempPathFactory
) -> Generator[tuple[Served, int]]:
    """A worker that tells how many tokens went through the pipeline, and the frontend's port."""
    folder = tmp_path_factory.mktemp("dynamo")
    arguments = (
        *("--model", str(tiny_model.folder), "--served-model-name", MODEL, "--enforce-eager"),
        *("--dtype", "float32", "--max-model-len", "1024", "--max-num-seqs", "8"),
        *("--kv-cache-memory-bytes", str(64 << 20), "--discovery-backend", "file"),
        *("--request-plane", "tcp"),
    )
    flags = ("--pipeline", "tests.real.dynamo_pipeline:telling")
    path = os.pathsep.join((STUBS, str(ROOT)))
    with (
        frontend(folder) as front,
        dynamo(folder, *flags, "dynamo.vllm", *arguments, PYTHONPATH=path) as served,
    ):
        waiting = until_listed("127.0.0.1", front.port, MODEL)
        try:
            asyncio.run(asyncio.wait_for(waiting, START_S))
        except TimeoutError:
            pytest.fail("not listed:\n" + "".join(served.seen[-60:]))
        yield served, front.port
        # Killed, it would leave vLLM's processes behind.
        served.signal()
        served.ended(60)


@pytest.fixture
def client(worker: tuple[Served, int]) -> Generator[OpenAI]:
    url = f"http://127.0.0.1:{worker[1]}/v1"
    # vLLM's first answer that is sampled takes long.
    with OpenAI(api_key="none", base_url=url, max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def tokenizer(tiny_model: RealModel) -> Any:
    return import_module("transformers").AutoTokenizer.from_pretrained(tiny_model.folder)


def test_text_log_probs_and_stop_strings_are_correct(
    worker: tuple[Served, int], client: OpenAI, tiny_model: RealModel, tokenizer: Any
) -> None:
    """The answer is the one of transformers; the pipeline saw each of its tokens."""
    served, _ = worker
    before = served.count("tokens 12")
    expected = tokenizer.decode(tiny_model.expected(tokenizer.encode(PROMPT), 12))

    def ask(**options: Any) -> Any:
        create: Any = client.completions.create
        made = create(model=MODEL, prompt=PROMPT, max_tokens=12, temperature=0, **options)
        return made.choices[0]

    answer = ask(logprobs=2)
    assert answer.text == expected
    assert answer.finish_reason == "length"
    assert len(answer.logprobs.token_logprobs) == 12
    assert until(lambda: served.count("tokens 12") > before, served)
    stop = expected[4:9]
    stopped = ask(stop=[stop])
    assert stopped.finish_reason == "stop"
    assert stopped.text == expected[: expected.index(stop)]


def test_a_disconnect_ends_the_request(worker: tuple[Served, int], client: OpenAI) -> None:
    """Long before its last token."""
    served, _ = worker
    before = len(lines(served))
    stream = client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=900, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    assert until(lambda: len(lines(served)) > before, served)
    assert lines(served)[-1] < 300


def test_a_request_that_vllm_rejects_is_a_client_error(client: OpenAI) -> None:
    """A pattern that is none is a 400, whose message is vLLM's."""
    with pytest.raises(BadRequestError, match="invalid regex"):
        client.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=2, extra_body={"guided_regex": "(("}
        )


def lines(served: Served) -> list[int]:
    """Return the numbers of tokens that requests had when they ended."""
    return [int(line.split()[1]) for line in served.seen if line.startswith("tokens ")]
