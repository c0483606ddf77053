"""Fill in the text of token ids."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, cast

from operators._chunk import answer_of
from operators._core.operator import callbacks, same_type
from operators._core.stage import Stage

__all__ = ("Detokenizer", "detokenize")


_MOST_HELD: Final = 32
# In bytes of UTF-8; a token has at least one.
_LONGEST_CHARACTER: Final = 4


class Detokenizer(Protocol):
    """The part of ``tokenizers.Tokenizer`` that is used."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of *ids*."""
        ...


def _check(tokenizer: object, **_: object) -> None:
    kind = type(tokenizer)
    if kind.__module__.partition(".")[0] != "tokenizers" or not hasattr(kind, "id_to_token"):
        raise TypeError(
            f"detokenize: tokenizer: expected a tokenizers.Tokenizer, got {tokenizer!r}; one of "
            "transformers has one as `backend_tokenizer`"
        )


@same_type
@callbacks(takes="chunks", check=_check)
def detokenize(tokenizer: Detokenizer, *, skip_special_tokens: bool = True) -> Stage[Any, Any]:
    """
    Fill in the text of chunks that have only token ids.

    Each answer (``index``) is decoded separately and incrementally, so that the texts of its chunks
    add up to the text of all its tokens. A character made of several tokens comes with the last of
    them. Invalid bytes come with the next character, or once there are many of them, and an
    incomplete character comes with the answer's terminal, each as U+FFFD. Here ``q`` and ``r`` each
    have a one-byte token, which together are the character ``é``::

        source  -q-r-|
        result  -Q-R-|
        text    ---é

    A chunk with tokens then has a text, which may be empty, and the text of each token in
    ``tokens``, so that a later :func:`stop_on_text` cuts between tokens. A chunk that already has a
    text, or whose class has no field for it, passes unchanged, and so does one without tokens.

    Args:
        tokenizer: The model's ``tokenizers.Tokenizer``; streams may share it.
        skip_special_tokens: Whether to leave out the text of special tokens, such as the end token.

    Raises:
        TypeError: *tokenizer* is something else; when the operator is made.

    Phase: chunks; before operators that read their text.
    Errors: source errors pass unchanged; bytes of an incomplete character are dropped.
    On dispose: nothing.

    >>> import reactivex
    >>> from tokenizers import Tokenizer, decoders, models
    >>> from rx_backend import LLMEngineOutput
    >>> tokenizer = Tokenizer(models.BPE({"one": 0, "Ġtwo": 1}, []))
    >>> tokenizer.decoder = decoders.ByteLevel()
    >>> chunks = reactivex.of(LLMEngineOutput([0]), LLMEngineOutput([1]))
    >>> _ = chunks.pipe(detokenize(tokenizer)).subscribe(lambda chunk: print(repr(chunk.text)))
    'one'
    ' two'
    """
    answers: dict[int, _Answer] = {}
    out: Any = yield
    while True:
        chunk: Any = out
        answer = answers.get(answer_of(chunk))
        if answer is None:
            answer = answers[answer_of(chunk)] = _Answer(tokenizer, skip_special_tokens)
        if getattr(chunk, "text", "") is None:
            texts = [answer.text_of(token_id) for token_id in chunk.token_ids]
            rest = answer.rest() if chunk.finish_reason is not None else ""
            if texts or rest:
                out = copy.copy(chunk)
                out.text = "".join(texts) + rest
                if texts and hasattr(chunk, "tokens"):
                    texts[-1] += rest
                    out.tokens = texts
        out = yield out


class _Answer:
    """The text of one answer, token by token."""

    def __init__(self, tokenizer: Detokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._step = _decoder(skip_special_tokens)
        # The tokens whose text has not been returned.
        self._held: list[int] = []

    def text_of(self, token_id: int) -> str:
        """Return the text that *token_id* completes, which may be none."""
        self._held.append(token_id)
        try:
            text = self._step(self._tokenizer, token_id)
        except Exception:
            # An invalid byte token invalidates the byte tokens before it, whose text was returned
            # already, and the decoder has lost its place.
            text = self._tokenizer.decode(self._held, self._skip)
            self._step = _decoder(self._skip)
            self._step(self._tokenizer, token_id)
        if text is None:
            return self._surplus() if len(self._held) >= _MOST_HELD else ""
        self._held.clear()
        return text

    def _surplus(self) -> str:
        """
        Return the text of the held tokens, except a last character that may be incomplete.

        The cost is quadratic in the number of held tokens.
        """
        whole = self._tokenizer.decode(self._held, self._skip)
        for kept in range(1, _LONGEST_CHARACTER):
            first, last = self._held[:-kept], self._held[-kept:]
            text, rest = (self._tokenizer.decode(part, self._skip) for part in (first, last))
            if rest.endswith("\ufffd") and text + rest == whole:
                self._held.clear()
                self._step = _decoder(self._skip)
                return text + "".join(map(self.text_of, last))
        return ""

    def rest(self) -> str:
        """Return the text of the incomplete rest, at the end of the answer."""
        return self._tokenizer.decode(self._held, self._skip)


def _decoder(skip_special_tokens: bool) -> Callable[[Any, int], str | None]:
    """Return a function of the tokenizer and the next token, which returns the text that is complete."""
    from tokenizers.decoders import (  # noqa: PLC0415 - importing the library stays light
        DecodeStream,
    )

    stream: Any = DecodeStream(skip_special_tokens=skip_special_tokens)
    return cast("Callable[[Any, int], str | None]", stream.step)
