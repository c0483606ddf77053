"""`rx-backend serve` with vLLM: its answers at a client, and a worker whose core is killed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, OpenAI

from rx_backend.worker.frontend import until_listed
from tests.real.tiny_model import RealModel
from tests.rx_backend.worker._processes import Served, frontend, serve

pytestmark = [
    pytest.mark.needs("vllm", "dynamo", "transformers", "gguf"),
    pytest.mark.timeout(600),
]

MODEL = "tiny"
START_S = 300.0
PROMPT = "the token of a stream"
ARGUMENTS = (
    *("dtype=float32", "enforce_eager=true", "max_model_len=1024", "max_num_seqs=8"),
    f"kv_cache_memory_bytes={64 << 20}",
)


def worker(folder: Path, model: RealModel) -> Any:
    """Serve the tiny model with vLLM."""
    arguments = [part for each in ARGUMENTS for part in ("--engine-arg", each)]
    return serve(
        folder,
        "rx_backend.engines.vllm:VllmEngine",
        *("--model-path", str(model.folder), "--served-model-name", MODEL, "--grace-s", "0"),
        *arguments,
    )


def core_of(served: Served) -> int:
    """Return the process id of a worker's vLLM core."""
    children = Path(f"/proc/{served.process.pid}/task")
    pids = [pid for task in children.iterdir() for pid in (task / "children").read_text().split()]
    (core,) = [pid for pid in pids if "EngineC" in Path(f"/proc/{pid}/comm").read_text()]
    return int(core)


def text_after(model: RealModel, prompt: str, tokens: int) -> str:
    """Return the model's greedy answer, by transformers alone."""
    transformers: Any = import_module("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model.folder)
    return tokenizer.decode(model.expected(tokenizer(prompt).input_ids, tokens))


def completion(client: OpenAI, tokens: int = 12, **options: Any) -> Any:
    options = {"prompt": PROMPT, "temperature": 0, "max_tokens": tokens, **options}
    create: Any = client.completions.create
    return create(model=MODEL, **options)


@pytest.mark.rows("E7")
def test_a_served_request_survives_its_worker(tiny_model: RealModel, tmp_path: Path) -> None:
    """The model's own answers, alone and eight at once; a killed core costs no client a token."""
    with ExitStack() as stack:
        front = stack.enter_context(frontend(tmp_path))
        workers = [stack.enter_context(worker(tmp_path, tiny_model)) for _ in range(2)]
        # Killed, one would leave vLLM's processes behind.
        for each in workers:
            stack.callback(each.ended, 60)
            stack.callback(each.signal)
        asyncio.run(asyncio.wait_for(until_listed("127.0.0.1", front.port, MODEL), START_S))
        for each in workers:
            each.line("serving", START_S)
        client = stack.enter_context(front.client())
        expected = completion(client).choices[0].text
        assert expected == text_after(tiny_model, PROMPT, 12)
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(completion, client) for _ in range(8)]
            assert {each.result().choices[0].text for each in asked} == {expected}
        with pytest.raises(APIStatusError) as caught:
            completion(client, prompt="the " * 3000)
        assert caught.value.status_code == 400

        whole = completion(client, 600).choices[0].text
        # One for each worker.
        streams = [iter(completion(client, 600, stream=True)) for _ in workers]
        read = [text_of(islice(stream, 20)) for stream in streams]
        lost = workers[0]
        os.kill(core_of(lost), signal.SIGKILL)
        for started, stream in zip(read, streams, strict=True):
            assert started + text_of(stream) == whole
        assert lost.ended(30) == 1
        assert "the engine is lost" in "".join(lost.seen)
        assert completion(client).choices[0].text == expected


def text_of(chunks: Iterable[Any]) -> str:
    return "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
