"""Streams as the chunks of OpenAI's chat and completion endpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, TypeAlias, TypeVar

import msgspec

from rx_backend.errors import Unknown
from rx_backend.logger import get_logger
from rx_backend.protocols import Annotated, CompletionUsage, LLMEngineOutput
from rx_backend.web._failures import error_object
from rx_backend.web._formats import ItemStream, Writer, event, json_of
from rx_backend.web._openai_logprobs import (
    ChatLogprobs,
    CompletionLogprobs,
    chat_logprobs,
    completion_logprobs,
)

__all__ = ("ChatChunks", "CompletionChunks")

C = TypeVar("C", bound=msgspec.Struct)

_Choice: TypeAlias = Callable[[LLMEngineOutput, int, str | None], C | None]

_log = get_logger(__name__)

# OpenAI has no reason for a cancelled request, which keeps what was generated.
_FINISH: Final = {
    "eos": "stop",
    "stop": "stop",
    "length": "length",
    "cancelled": "stop",
    "content_filter": "content_filter",
}


@dataclass(frozen=True)
class _Chunks:
    model: str
    id: str | None = None
    created: int | None = None
    include_usage: bool = False

    empty_status = 200

    def _writer(
        self,
        stream: ItemStream,
        prefix: str,
        choice: _Choice[C],
        chunk: Callable[..., msgspec.Struct],
    ) -> Writer:
        request_id = getattr(getattr(stream, "context", None), "id", "stream")
        began = getattr(stream, "created", None) or time.time()
        answer_id = f"{prefix}-{request_id}" if self.id is None else self.id
        created = int(began) if self.created is None else self.created
        return _OpenAIWriter(
            choice,
            partial(chunk, answer_id, created, self.model),
            include_usage=self.include_usage,
            earlier_usage=getattr(stream, "earlier_usage", ()),
        )


class ChatChunks(_Chunks):
    """
    The chunks of ``/v1/chat/completions``, then ``data: [DONE]``.

    The first chunk of each choice has the role. Items without a chunk, and chunks with nothing for
    the client, are omitted. A failure is an event with OpenAI's error object, for which its clients
    raise ``APIError``; no ``[DONE]`` follows.

    Args:
        model: The model's name in each chunk.
        id: The id of the answer; by default ``chatcmpl-`` and the request's id.
        created: Unix time, in seconds; by default the stream's ``created``, or now.
        include_usage: Whether a last chunk has the request's usage, if the engine reports it:
            OpenAI's ``stream_options.include_usage``.
    """

    def writer(self, stream: ItemStream) -> Writer:
        """Return the writer of one response."""
        choices = _ChatChoices(getattr(stream, "earlier_answers", ()))
        return self._writer(stream, "chatcmpl", choices.choice, _ChatChunk)


class CompletionChunks(_Chunks):
    """
    The chunks of ``/v1/completions``, then ``data: [DONE]``; otherwise like `ChatChunks`.

    Args:
        model: The model's name in each chunk.
        id: The id of the answer; by default ``cmpl-`` and the request's id.
        created: Unix time, in seconds; by default the stream's ``created``, or now.
        include_usage: Whether a last chunk has the request's usage.
    """

    def writer(self, stream: ItemStream) -> Writer:
        """Return the writer of one response."""
        return self._writer(stream, "cmpl", _CompletionChoices().choice, _CompletionChunk)


class _Delta(msgspec.Struct, omit_defaults=True):
    role: str | None = None
    content: str | None = None


class _ChatChoice(msgspec.Struct):
    index: int
    delta: _Delta
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class _CompletionChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None


class _ChatChunk(
    msgspec.Struct, tag_field="object", tag="chat.completion.chunk", omit_defaults=True
):
    id: str
    created: int
    model: str
    choices: list[_ChatChoice]
    usage: CompletionUsage | None = None


class _CompletionChunk(
    msgspec.Struct, tag_field="object", tag="text_completion", omit_defaults=True
):
    id: str
    created: int
    model: str
    choices: list[_CompletionChoice]
    usage: CompletionUsage | None = None


class _OpenAIWriter(Generic[C]):
    """
    Writes one response.

    Args:
        choice: Makes the choice of a chunk; None for a chunk with nothing for the client.
        chunk: Makes a chunk from its choices and the usage.
        include_usage: Whether a last chunk has the usage.
        earlier_usage: The usage of answers whose end the client already has.
    """

    has_failed = False

    def __init__(
        self,
        choice: _Choice[C],
        chunk: Callable[[list[C], CompletionUsage | None], msgspec.Struct],
        *,
        include_usage: bool,
        earlier_usage: Iterable[CompletionUsage],
    ) -> None:
        self._choice = choice
        self._chunk = chunk
        self._include_usage = include_usage
        self._usage: CompletionUsage | None = None
        self._has_text = False
        for usage in earlier_usage:
            self._add_usage(usage)

    def item(self, item: Annotated[LLMEngineOutput]) -> bytes:
        if item.error is not None:
            return self.failure(item.error)
        output = item.data
        if output is None:
            return b""
        reason = output.finish_reason
        finish = None if reason is None else _FINISH.get(reason.kind)
        if reason is not None:
            if finish is None:
                return self.failure(Unknown(reason.message or "the engine failed"))
            self._add_usage(output.completion_usage)
        if not self._has_text:
            self._look_for_text(output)
        choice = self._choice(output, output.index or 0, finish)
        if choice is None:
            return b""
        return event(json_of(self._chunk([choice], None)), id=item.id)

    def failure(self, error: Exception) -> bytes:
        self.has_failed = True
        return event(json_of(error_object(error)))

    def end(self) -> bytes:
        last = b""
        if self._include_usage and self._usage is not None:
            last = event(json_of(self._chunk([], self._usage)))
        return last + event(b"[DONE]")

    def _add_usage(self, usage: CompletionUsage | None) -> None:
        """Add what an answer cost: each has the prompt, which is read once."""
        if usage is None or self._usage is None:
            self._usage = usage or self._usage
            return
        prompt = max(usage.prompt_tokens, self._usage.prompt_tokens)
        completion = usage.completion_tokens + self._usage.completion_tokens
        self._usage = CompletionUsage(prompt, completion, prompt + completion)

    def _look_for_text(self, output: LLMEngineOutput) -> None:
        """Warn once about a stream that has token ids but no text."""
        self._has_text = True
        if output.token_ids and output.text is None and output.finish_reason is None:
            _log.warning(
                "chunks have token ids and no text: add `operators.detokenize` to the pipeline"
            )


class _ChatChoices:
    """
    Makes the choices of a chat; the first choice of each index has the role.

    Args:
        begun: The answers whose first choice the client already has.
    """

    def __init__(self, begun: Iterable[int]) -> None:
        self._begun = set(begun)

    def choice(self, output: LLMEngineOutput, index: int, finish: str | None) -> _ChatChoice | None:
        text, logprobs = output.text, chat_logprobs(output)
        if not text and finish is None and logprobs is None:
            return None
        delta = _Delta(content=text)
        if index not in self._begun:
            self._begun.add(index)
            delta = _Delta("assistant", text or "")
        return _ChatChoice(index, delta, logprobs, finish)


class _CompletionChoices:
    """Makes the choices of a completion; token offsets are offsets in the response's text."""

    def __init__(self) -> None:
        self._characters: dict[int, int] = {}

    def choice(
        self, output: LLMEngineOutput, index: int, finish: str | None
    ) -> _CompletionChoice | None:
        text, offset = output.text or "", self._characters.get(index, 0)
        logprobs = completion_logprobs(output, offset)
        if not text and finish is None and logprobs is None:
            return None
        self._characters[index] = offset + len(text)
        return _CompletionChoice(index, text, logprobs, finish)
