"""
A FastAPI service with OpenAI's endpoints and resumable answers.

    pip install 'rx-backend[web]' fastapi uvicorn jinja2
    cd examples
    uvicorn fastapi_service:app --timeout-graceful-shutdown 5

Its sample engine counts. ``MODEL=model.gguf`` in the environment runs a model on llama.cpp, with
the file's tokenizer and chat template; that needs the extras ``engine-llama-cpp`` and ``gguf``.
http://127.0.0.1:8000 shows a page whose stream survives a reload.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, Field
from tokenizers import Tokenizer

from operators import Pipeline, detokenize, stop_on_text, usage
from rx_backend import (
    EngineAdapter,
    InvalidArgument,
    LLMEngine,
    PreprocessedRequest,
    RequestScope,
    protocols,
    standard_pipeline,
)
from rx_backend.engines import SampleEngine
from rx_backend.protocols import SamplingOptions, StopConditions
from rx_backend.resumable import ResumableStreams
from rx_backend.web import (
    FAILURES,
    ChatChunks,
    CompletionChunks,
    JsonItems,
    context_of,
    error_response,
    respond,
    resume,
    start_or_resume,
)
from rx_backend.worker.model_files import find_tokenizer, shared_model_folder


class Options(BaseModel, extra="forbid"):
    """The fields that both endpoints accept; others are refused, not ignored."""

    model: str = ""
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    max_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1)
    temperature: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None

    def request(self, token_ids: list[int]) -> PreprocessedRequest:
        """Return the request for the engine."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        return PreprocessedRequest(
            model=self.model,
            token_ids=token_ids,
            stop_conditions=StopConditions(max_tokens=self.max_tokens, stop=stop),
            sampling_options=SamplingOptions(
                n=self.n, temperature=self.temperature, seed=self.seed
            ),
        )


class Message(BaseModel, extra="forbid"):
    """A message of a chat."""

    role: str
    content: str


class Chat(Options):
    """The body of ``/v1/chat/completions``."""

    messages: list[Message]


class Completion(Options):
    """The body of ``/v1/completions``."""

    prompt: str


class Service:
    """
    The model's tokenizer and template, and the running answers.

    Args:
        folder: The model's tokenizer and its settings.
        streams: The answers.
        name: The model's name.
    """

    def __init__(self, folder: Path, streams: ResumableStreams, name: str) -> None:
        self.name = name
        self.streams = streams
        self._tokenizer = tokenizer_in(folder)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        # A template comes with a model, so it is sandboxed.
        sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        self._template = sandbox.from_string(settings.get("chat_template") or "")
        self._special = {name: settings.get(name, "") for name in ("bos_token", "eos_token")}

    def chat_request(self, body: Chat) -> PreprocessedRequest:
        """Return the request for a chat."""
        messages = [message.model_dump() for message in body.messages]
        text = self._template.render(messages=messages, add_generation_prompt=True, **self._special)
        return body.request(self.token_ids(text))

    def token_ids(self, text: str) -> list[int]:
        """Return the tokens of a text; a lone surrogate, which JSON allows, becomes "?"."""
        whole = text.encode(errors="replace").decode()
        return self._tokenizer.encode(whole, add_special_tokens=False).ids

    def answer(
        self,
        http_request: Request,
        body: Options,
        request: PreprocessedRequest,
        form: type[ChatChunks | CompletionChunks],
    ) -> Response:
        """Return the response that streams the answer, or the rest of one."""
        if not body.stream:
            raise InvalidArgument("stream: expected true, this service only streams")
        context = context_of(http_request)
        opening = start_or_resume(self.streams, http_request, request, context)
        with_usage = bool((body.stream_options or {}).get("include_usage"))
        return respond(opening, form(self.name, include_usage=with_usage), context=context)


def tokenizer_in(folder: Path) -> Tokenizer:
    """Return the tokenizer of a model."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def load_engine() -> tuple[LLMEngine, Path]:
    """Return the engine, and the folder with its tokenizer."""
    model = os.environ.get("MODEL")
    if model is None:
        interval_ms = float(os.environ.get("TOKEN_INTERVAL_MS", "50"))
        engine = SampleEngine(token_interval_ms=interval_ms, default_max_tokens=200)
        return engine, shared_model_folder()
    from rx_backend.engines.llama_cpp import LlamaCppEngine  # noqa: PLC0415 - an extra of its own

    folder = find_tokenizer(model)
    if folder is None:
        raise InvalidArgument(f"MODEL: expected a GGUF file, got {model!r}")
    return LlamaCppEngine(model), Path(folder)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Start the engine, and release it when the server stops."""
    engine, folder = load_engine()
    tokenizer = tokenizer_in(folder)

    def pipeline(scope: RequestScope) -> Pipeline:
        prompt, stop = scope.request.token_ids, scope.request.stop_conditions.stop
        return standard_pipeline.with_operators(
            detokenize(tokenizer), stop_on_text(stop), usage(len(prompt), protocols.usage)
        )

    try:
        config = await engine.start(0)
        async with ResumableStreams(EngineAdapter(engine, pipeline=pipeline)) as streams:
            app.state.service = Service(folder, streams, config.model)
            yield
    finally:
        await engine.cleanup()


async def service_of(http_request: Request) -> Service:
    """Return the service of the application."""
    return http_request.app.state.service


async def refuse(http_request: Request, error: Exception) -> Response:
    """Respond to a request that failed before its stream."""
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        error = InvalidArgument(f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
    return error_response(error)


app = FastAPI(
    lifespan=lifespan,
    exception_handlers=dict.fromkeys((*FAILURES, RequestValidationError), refuse),
)
Served = Annotated[Service, Depends(service_of)]


@app.post("/v1/chat/completions")
async def chat(body: Chat, http_request: Request, service: Served) -> Response:
    """Stream the answer to a chat; with ``Last-Event-ID``, the rest of one."""
    return service.answer(http_request, body, service.chat_request(body), ChatChunks)


@app.post("/v1/completions")
async def completions(body: Completion, http_request: Request, service: Served) -> Response:
    """Stream the continuation of a text; with ``Last-Event-ID``, the rest of one."""
    request = body.request(service.token_ids(body.prompt))
    return service.answer(http_request, body, request, CompletionChunks)


@app.get("/v1/models")
async def models(service: Served) -> dict[str, Any]:
    """List the model."""
    return {"object": "list", "data": [{"id": service.name, "object": "model"}]}


@app.post("/streams", status_code=201)
async def begin(body: Chat, http_request: Request, service: Served) -> Response:
    """Start the answer to a chat, for a browser to read under the returned id."""
    request, context = service.chat_request(body), context_of(http_request)
    async with await service.streams.start(request, context) as reader:
        id = reader.stream_id  # noqa: A001 - what the path calls it
    return JSONResponse({"id": id}, 201, {"location": f"/streams/{id}"})


@app.get("/streams/{id}")
async def read(id: str, http_request: Request, service: Served) -> Response:
    """Stream an answer after the ``Last-Event-ID`` that a browser's ``EventSource`` sends."""
    return respond(resume(service.streams, http_request, id), JsonItems())


@app.delete("/streams/{id}", status_code=204)
async def stop(id: str, service: Served) -> None:
    """Stop an answer; its readers get the tokens so far."""
    await service.streams.stop(id)


@app.get("/")
async def page() -> FileResponse:
    """Show the page."""
    return FileResponse(Path(__file__).with_name("resumable_page.html"))
