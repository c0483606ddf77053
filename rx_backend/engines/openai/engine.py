"""Engine for a server with OpenAI's API."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Final

from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from rx_backend.checks import integer, number
from rx_backend.context import RequestContext
from rx_backend.engine import EngineConfig, LLMEngine
from rx_backend.engines.openai.answers import DONE, Answers, LlamaServerAnswers, OpenAIAnswers
from rx_backend.engines.openai.client import OpenAIClient
from rx_backend.engines.openai.request import check_request, path_and_body
from rx_backend.engines.openai.server import KINDS, Server, ask_server
from rx_backend.engines.openai.stream import EventReader
from rx_backend.engines.openai.tokenizer import Tokenizer, TokenizerFile
from rx_backend.errors import BackendError, EngineShutdown, InvalidArgument
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest

__all__ = ("OpenAIEngine",)

_POLL_S: Final = 1.0
_TRACE: Final = TraceContextTextMapPropagator()


class OpenAIEngine(LLMEngine):
    """
    Stream the answers of vLLM, SGLang, llama-server, TGI, Ollama or another server with OpenAI's API.

    The prompt is sent to the completions endpoint, as token ids if the server accepts them,
    otherwise as text. vLLM, SGLang and llama-server return token ids. Others return text; the
    chunks' ids are then the tokenizer's, which may differ from those that the model generated.
    Without a tokenizer there is only text. The endpoint has no tool calls; they must be parsed from
    the text. A request whose ``extra_args`` have ``messages``, and perhaps ``tools``, is sent to
    the chat endpoint; its chunks have text, and the server's ``tool_calls`` in ``engine_data``.

    A stop closes the connection, which stops the server's work, and ends the stream with
    `cancelled` and the usage so far (row E4). The server gets the request's id as ``X-Request-Id``,
    and its trace.

    Args:
        base_url: The server's URL, such as ``http://host:8000/v1``.
        model: The model's name on the server; by default the first one listed.
        tokenizer: A folder with ``tokenizer.json``, the file, or a `Tokenizer`, for servers that
            accept or return only text.
        server: Its kind: vllm, sglang, llama-server, tgi, ollama, or openai for any other; detected
            by default.
        api_key_env: Name of the environment variable with the server's API key.
        context_length: Maximum of prompt and output together, in tokens; by default the server's,
            if it reports one.
        connect_timeout_s: The timeout for connecting, in seconds.
        lost_after_s: How long the server must be unreachable to count as lost, in seconds.
        max_event_bytes: Maximum size of an event of a stream.

    Raises:
        ImportError: The package ``aiohttp``, or ``tokenizers`` for a tokenizer, is not installed.
        InvalidArgument: A parameter is out of its range; the message names it.
    """

    needs_tokenizer = True

    def __init__(
        self,
        base_url: str,
        *,
        model: str | None = None,
        tokenizer: str | Path | Tokenizer | None = None,
        server: str | None = None,
        api_key_env: str | None = None,
        context_length: int | None = None,
        connect_timeout_s: float = 10.0,
        lost_after_s: float = 30.0,
        max_event_bytes: int = 8 * 1024 * 1024,
    ) -> None:
        if server is not None and server not in KINDS:
            raise InvalidArgument(f"server: expected one of {', '.join(KINDS)}, got {server!r}")
        headers: dict[str, str] = {}
        if api_key_env is not None:
            key = os.environ.get(api_key_env)
            if not key:
                raise InvalidArgument(f"api_key_env: the variable {api_key_env} is not set")
            headers["Authorization"] = f"Bearer {key}"
        connect_s = number(
            "connect_timeout_s", connect_timeout_s, low=0, unit="seconds", above=True
        )
        self._client = OpenAIClient(base_url, headers, connect_s)
        self._model, self._kind = model, server
        is_path = isinstance(tokenizer, (str, Path))
        self._tokenizer = TokenizerFile(tokenizer) if is_path else tokenizer
        if context_length is not None:
            integer("context_length", context_length, low=2, unit="tokens")
        self._context_length = context_length
        self._lost_after_s = number("lost_after_s", lost_after_s, low=0, unit="seconds")
        self._max_event_bytes = integer("max_event_bytes", max_event_bytes, low=1, unit="bytes")
        self._server: Server | None = None

    async def start(self, worker_id: int) -> EngineConfig:
        """
        Detect the server's kind and limits.

        Raises:
            BackendError: The server could not be reached.
            InvalidArgument: It lists no model and none is given, or it accepts only text and there
                is no tokenizer.
        """
        await self._client.open()
        try:
            server = await ask_server(self._client, self._kind, self._model, self._context_length)
        except BaseException:
            await self._client.close()
            raise
        self._server = server
        if not server.takes_ids and self._tokenizer is None:
            await self.cleanup()
            raise InvalidArgument(
                f"{self._client.url} ({server.kind.name}) accepts only text prompts: pass tokenizer"
            )
        return EngineConfig(
            model=server.model, context_length=server.context_length, max_num_seqs=server.slots
        )

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        """
        Stream the answers to *request*.

        Raises:
            InvalidArgument: The request has options that the server can't honour, or was rejected.
            BackendError: The server could not be reached, was lost, or reported an error.
        """
        server = self._server
        if server is None:
            raise EngineShutdown("the engine is not started, or was cleaned up")
        check_request(request, server)
        path, body = path_and_body(request, server, self._prompt(request, server))
        answers = self._answers(request, path)
        headers = {**context.trace_headers, "x-request-id": context.id}
        _TRACE.inject(headers)
        async with self._client.post(path, body, context, headers) as response:
            events = EventReader(self._max_event_bytes)
            while response is not None and not (context.is_stopped or answers.is_done):
                try:
                    data = await self._client.read(response, context)
                    for event in events.feed(data) if data else [*events.end(), DONE]:
                        if context.is_stopped:
                            break
                        # Whole: its answers count what is in it.
                        for chunk in answers.read(event):
                            yield chunk
                except BackendError:
                    if context.is_stopped or answers.are_complete:
                        break
                    raise
        for chunk in answers.end(is_stopped=context.is_stopped):
            yield chunk

    async def cleanup(self) -> None:
        """Close all connections (row E5)."""
        self._server = None
        await self._client.close()

    async def health_check_payload(self) -> dict[str, Any] | None:
        """Return a request for one token."""
        return {"token_ids": [1], "stop_conditions": {"max_tokens": 1}}

    async def lost(self) -> str:
        """
        Return why the server is lost, once it was unreachable for ``lost_after_s`` (row E7).

        After a failed connection it is checked once a second, until it responds.
        """
        loop = asyncio.get_running_loop()
        while True:
            await self._client.failed.wait()
            self._client.failed.clear()
            end = loop.time() + self._lost_after_s
            while not await self._client.answers():
                if loop.time() >= end:
                    return f"{self._client.url} was unreachable for {self._lost_after_s:g} s"
                await asyncio.sleep(_POLL_S)

    def _prompt(self, request: PreprocessedRequest, server: Server) -> str | list[int]:
        if server.takes_ids or self._tokenizer is None:
            return request.token_ids
        return self._tokenizer.decode(request.token_ids)

    def _answers(self, request: PreprocessedRequest, path: str) -> Answers[Any]:
        encode = None if self._tokenizer is None else self._tokenizer.encode
        if path == "/completion":
            return LlamaServerAnswers(request, encode)
        return OpenAIAnswers(request, encode)
