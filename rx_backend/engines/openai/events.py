"""The JSON of a server's events, as far as it is used."""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field

from rx_backend.protocols import CompletionUsage

__all__ = ("Choice", "Completion", "Delta", "Event", "Logprobs", "Timings", "TokenLogprob")


class TokenLogprob(Struct, gc=False):
    """A token with its log probability, in the form of the chat endpoint."""

    logprob: float
    token: str = ""
    id: int | None = None
    bytes: list[int] | None = None
    top_logprobs: list[TokenLogprob] = field(default_factory=list["TokenLogprob"])


class Logprobs(Struct, gc=False):
    """The log probabilities of a choice: ``content`` in a chat, else the lists."""

    content: list[TokenLogprob] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class Delta(Struct, gc=False):
    """The delta of a chat's event."""

    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Choice(Struct, gc=False):
    """The part of an event for one answer; ``token_ids`` if the server returns them."""

    index: int = 0
    text: str = ""
    delta: Delta | None = None
    token_ids: list[int] | None = None
    logprobs: Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class Event(Struct, gc=False):
    """An event of ``/v1/completions`` or ``/v1/chat/completions``; one with ``error`` is a failure."""

    choices: list[Choice] = field(default_factory=list[Choice])
    usage: CompletionUsage | None = None
    error: Any = None
    object: str = ""
    message: str = ""
    code: int | str | None = None


class Timings(Struct, gc=False):
    """The measurements of llama-server; ``cache_n`` is the number of cached prompt tokens."""

    cache_n: int = 0


class Completion(Struct, gc=False):
    """An event of llama-server's ``/completion``; the counts are one answer's totals so far."""

    content: str = ""
    tokens: list[int] = field(default_factory=list[int])
    index: int = 0
    tokens_evaluated: int = 0
    tokens_predicted: int = 0
    completion_probabilities: list[TokenLogprob] | None = None
    stop: bool = False
    stop_type: str = ""
    stopping_word: str = ""
    timings: Timings | None = None
    error: Any = None
