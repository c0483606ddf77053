"""Chunks of a request's answers, from the events of a server's stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, TypeVar

import msgspec

from rx_backend.engines.answer_progress import AnswerProgress
from rx_backend.engines.openai.client import reported_error
from rx_backend.engines.openai.events import (
    Choice,
    Completion,
    Delta,
    Event,
    Logprobs,
    TokenLogprob,
)
from rx_backend.errors import StreamIncomplete, Unknown
from rx_backend.protocols import (
    CompletionUsage,
    FinishReason,
    LLMEngineOutput,
    PreprocessedRequest,
    PromptTokensDetails,
    TopLogprob,
    usage,
)

__all__ = ("DONE", "Answers", "LlamaServerAnswers", "OpenAIAnswers")

E = TypeVar("E", Event, Completion)
Encode = Callable[[str], list[int]]

DONE: Final = b"[DONE]"
"""The data of the end-of-stream event."""

# Finish reasons of the chat endpoint and of TGI that this library names otherwise.
_STOP_WORDS: Final[Mapping[str, str]] = {
    "tool_calls": "stop",
    "function_call": "stop",
    "eos_token": "eos",
    "stop_sequence": "stop",
}


class Answers(ABC, Generic[E]):
    """
    The state of the answers to one request.

    Args:
        request: The request.
        encode: Converts text to token ids if the server returns none; without it there are none.

    Attributes:
        is_done: Whether the stream has ended.
    """

    def __init__(
        self, request: PreprocessedRequest, decoder: msgspec.json.Decoder[E], encode: Encode | None
    ) -> None:
        self.is_done = False
        self._decoder = decoder
        self._encode = encode
        self._progress = AnswerProgress(request)
        self._top = request.output_options.logprobs or 0

    def read(self, data: bytes) -> list[LLMEngineOutput]:
        """
        Return the chunks of an event.

        Raises:
            BackendError: The server reports an error.
            Unknown: The event has another form.
        """
        if data == DONE:
            self.is_done = True
            return []
        try:
            event = self._decoder.decode(data)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise Unknown(
                f"the server sent no completion event: {error}: {data[:200]!r}"
            ) from error
        if event.error is not None:
            raise reported_error(event.error)
        return self._chunks(event)

    @property
    def are_complete(self) -> bool:
        """Whether each answer has its finish reason."""
        return self._progress.answers.are_over

    def end(self, *, is_stopped: bool) -> list[LLMEngineOutput]:
        """
        Return the rest at the end of the stream: terminals of answers that were stopped.

        Raises:
            StreamIncomplete: An answer has no finish reason, and was not stopped.
        """
        if not self.are_complete and not is_stopped:
            raise StreamIncomplete("the server's stream ended without a finish reason")
        return self._progress.cancelled()

    @abstractmethod
    def _chunks(self, event: E) -> list[LLMEngineOutput]: ...

    def _add_log_probs(self, chunk: LLMEngineOutput, entries: list[TokenLogprob]) -> None:
        """Add the log probabilities, if there is one for each of the chunk's tokens."""
        if len(entries) != len(chunk.token_ids):
            return
        chunk.log_probs = [entry.logprob for entry in entries]
        if self._top:
            chunk.top_logprobs = [self._likeliest(entry.top_logprobs) for entry in entries]

    def _likeliest(self, entries: list[TokenLogprob]) -> list[TopLogprob]:
        ranked = sorted(entries, key=lambda entry: -entry.logprob)[: self._top]
        return [
            TopLogprob(
                rank=rank,
                token_id=token_id,
                token=None if entry.id is None else entry.token,
                logprob=entry.logprob,
                bytes=None if entry.id is None else entry.bytes,
            )
            for rank, entry in enumerate(ranked, 1)
            if (token_id := _id_of(entry)) is not None
        ]


class OpenAIAnswers(Answers[Event]):
    """
    The answers in a stream of ``/v1/completions`` or ``/v1/chat/completions``.

    A chunk has the server's token ids, and text only without ids or in a chat. A chat's tool calls
    and reasoning are in ``engine_data``, in the server's form. The last terminal waits for the
    usage, which follows it.
    """

    def __init__(self, request: PreprocessedRequest, encode: Encode | None = None) -> None:
        super().__init__(request, _EVENTS, encode)
        self._usage: CompletionUsage | None = None
        self._held: LLMEngineOutput | None = None

    def end(self, *, is_stopped: bool) -> list[LLMEngineOutput]:
        """Return the rest at the end of the stream; the last terminal has waited for the usage."""
        left = super().end(is_stopped=is_stopped)
        last, self._held = self._held, None
        if last is None:
            return left
        told = self._usage
        if told is not None:
            # The server counts all answers together, a terminal only its own.
            made = self._progress.output_tokens
            others = made.total() - made[last.index or 0]
            told.completion_tokens = max(told.completion_tokens - others, 0)
            told.total_tokens = told.prompt_tokens + told.completion_tokens
            last.completion_usage = told
        return [last]

    def _chunks(self, event: Event) -> list[LLMEngineOutput]:
        if event.object == "error":
            raise reported_error({"message": event.message, "code": event.code})
        if event.usage is not None:
            self._usage = event.usage
        return [chunk for choice in event.choices if (chunk := self._chunk(choice))]

    def _chunk(self, choice: Choice) -> LLMEngineOutput | None:
        index, delta, ids, text = choice.index, choice.delta, choice.token_ids, choice.text
        if not self._progress.is_open(index):
            return None
        if delta is not None:
            text = delta.content or ""
        chunk = LLMEngineOutput(ids or [])
        if ids is None or delta is not None:
            chunk.text = text or None
        if ids is None and text and self._encode is not None:
            chunk.token_ids = ids = self._encode(text)
        chunk.index = self._progress.index(index)
        if delta is not None:
            chunk.engine_data = _beside_text(delta)
        if choice.logprobs is not None:
            self._add_log_probs(chunk, _entries(choice.logprobs))
        self._progress.output_tokens[index] += bool(text) if ids is None else len(ids)
        # Some servers send an empty one with each event.
        if choice.finish_reason:
            return self._terminal(chunk, choice, choice.finish_reason)
        return chunk if chunk.token_ids or text or chunk.engine_data else None

    def _terminal(
        self, chunk: LLMEngineOutput, choice: Choice, word: str
    ) -> LLMEngineOutput | None:
        known = _STOP_WORDS.get(word)
        chunk.finish_reason = FinishReason.parse(known or word)
        chunk.stop_reason = choice.stop_reason
        if choice.stop_reason is None and word in {"tool_calls", "function_call"}:
            chunk.stop_reason = word
        chunk.completion_usage = self._progress.usage(choice.index)
        self._progress.answers.end(choice.index)
        if not self.are_complete:
            return chunk
        self._held = chunk
        return None


class LlamaServerAnswers(Answers[Completion]):
    """
    The answers in a stream of llama-server's ``/completion``.

    A chunk has the text and the token ids. For a character of several tokens the server sends only
    the last id; *encode* then yields the ids of the text. A chunk with log probabilities for all
    its tokens has no text, as a frontend drops them if there is text.
    """

    def __init__(self, request: PreprocessedRequest, encode: Encode | None = None) -> None:
        super().__init__(request, _COMPLETIONS, encode)

    def _chunks(self, event: Completion) -> list[LLMEngineOutput]:
        index, ids = event.index, event.tokens
        progress = self._progress
        if not progress.is_open(index):
            return []
        has_all = len(ids) >= event.tokens_predicted - progress.output_tokens[index]
        if not has_all and event.content and self._encode is not None:
            ids = self._encode(event.content)
        progress.output_tokens[index] = event.tokens_predicted
        chunk = LLMEngineOutput(ids, text=event.content, index=progress.index(index))
        if event.completion_probabilities is not None:
            self._add_log_probs(chunk, event.completion_probabilities)
            if has_all and chunk.log_probs:
                chunk.text = None
        if event.stop:
            progress.answers.end(index)
            is_cut = event.stop_type == "limit"
            chunk.finish_reason = FinishReason.LENGTH if is_cut else FinishReason.STOP
            chunk.stop_reason = event.stopping_word or None
            chunk.completion_usage = counts = usage(event.tokens_evaluated, event.tokens_predicted)
            if event.timings is not None:
                cached = PromptTokensDetails(cached_tokens=event.timings.cache_n)
                counts.prompt_tokens_details = cached
        return [chunk]


_EVENTS: Final = msgspec.json.Decoder(Event)
_COMPLETIONS: Final = msgspec.json.Decoder(Completion)


def _beside_text(delta: Delta) -> dict[str, Any] | None:
    found: dict[str, Any] = {}
    if delta.tool_calls:
        found["tool_calls"] = delta.tool_calls
    if reasoning := delta.reasoning_content or delta.reasoning:
        found["reasoning_content"] = reasoning
    return found or None


def _entries(logprobs: Logprobs) -> list[TokenLogprob]:
    """Return the complete log probabilities of a choice, in the chat's form."""
    if logprobs.content is not None:
        return logprobs.content
    tokens, values = logprobs.tokens or [], logprobs.token_logprobs or []
    tops = logprobs.top_logprobs or [None] * len(tokens)
    return [
        TokenLogprob(
            logprob=0.0 if value is None else value,
            token=token,
            top_logprobs=[
                TokenLogprob(logprob=each, token=name) for name, each in (top or {}).items()
            ],
        )
        for token, value, top in zip(tokens, values, tops, strict=False)
    ]


def _id_of(entry: TokenLogprob) -> int | None:
    """Return the token's id, which vLLM sends as its text, such as ``token_id:7``."""
    name, _, digits = entry.token.partition(":")
    return int(digits) if name == "token_id" and digits.isdecimal() else entry.id
