"""Log probabilities in OpenAI's two formats."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import msgspec

from operators.assembly import encodable
from rx_backend.protocols import LLMEngineOutput, TopLogprob

__all__ = ("ChatLogprobs", "CompletionLogprobs", "chat_logprobs", "completion_logprobs")

# JSON has no infinity; OpenAI's server writes this for impossible tokens.
_IMPOSSIBLE: Final = -9999.0


class _Token(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class _ChatToken(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[_Token]


class ChatLogprobs(msgspec.Struct):
    """The log probabilities of a chat's chunk."""

    content: list[_ChatToken]


class CompletionLogprobs(msgspec.Struct):
    """The log probabilities of a completion's chunk."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


def chat_logprobs(output: LLMEngineOutput) -> ChatLogprobs | None:
    """Return the log probabilities of a chat's chunk; None if it has none."""
    if output.log_probs is None or not output.token_ids:
        return None
    tops = output.top_logprobs or [[] for _ in output.token_ids]
    return ChatLogprobs(
        [
            _ChatToken(
                text, logprob, list(encodable(text).encode()), [_top(top) for top in likeliest]
            )
            for (text, logprob), likeliest in zip(_tokens(output), tops, strict=False)
        ]
    )


def completion_logprobs(output: LLMEngineOutput, offset: int) -> CompletionLogprobs | None:
    """Return those of a completion's chunk, with its text at *offset*; None if it has none."""
    if output.log_probs is None or not output.token_ids:
        return None
    tokens = list(_tokens(output))
    offsets: list[int] = []
    for text, _ in tokens:
        offsets.append(offset)
        offset += len(text)
    tops = output.top_logprobs or []
    likeliest = [{_name(top): _finite(top.logprob) for top in of_token} for of_token in tops]
    return CompletionLogprobs(
        [text for text, _ in tokens],
        [logprob for _, logprob in tokens],
        likeliest or None,
        offsets,
    )


def _tokens(output: LLMEngineOutput) -> Iterator[tuple[str, float]]:
    """Yield each token's text and log probability."""
    texts = output.tokens or []
    for place, (token_id, logprob) in enumerate(
        zip(output.token_ids, output.log_probs or (), strict=False)
    ):
        text = texts[place] if place < len(texts) else None
        yield _unnamed(token_id) if text is None else text, _finite(logprob)


def _top(top: TopLogprob) -> _Token:
    name = _name(top)
    raw = list(encodable(name).encode()) if top.bytes is None else top.bytes
    return _Token(name, _finite(top.logprob), raw)


def _name(top: TopLogprob) -> str:
    return _unnamed(top.token_id) if top.token is None else top.token


def _unnamed(token_id: int) -> str:
    return f"token_id:{token_id}"


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _IMPOSSIBLE
