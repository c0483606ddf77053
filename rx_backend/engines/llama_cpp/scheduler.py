"""Continuous batching on llama.cpp: the engine's work in its step thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rx_backend.engines.llama_cpp.native import RANDOM_SEED, Cache, Model, Sampler
from rx_backend.engines.step_sequence import StepSequence
from rx_backend.errors import InvalidArgument
from rx_backend.protocols import FinishReason, LLMEngineOutput, PreprocessedRequest, TopLogprob

__all__ = ("Answer", "LlamaCppScheduler")


@dataclass(slots=True, eq=False)
class Answer:
    """
    One answer to generate.

    Attributes:
        prompt: Its token ids.
        limit: Maximum of tokens to generate.
        stop: The token ids that end it.
        received: The prompt's KV cache from another engine, which replaces reading the prompt.
        keeps: Whether to set `kept`.
        kept: The KV cache when the last token was generated: all but that token.
        number: llama.cpp's number of the sequence.
        computed: How many tokens are in the KV cache.
        last: The token that was generated last.
    """

    prompt: list[int]
    limit: int
    stop: frozenset[int]
    received: bytes | None = None
    keeps: bool = False
    kept: bytes | None = None
    sampler: Sampler | None = None
    number: int = -1
    computed: int = 0
    last: int = -1

    @property
    def is_reading(self) -> bool:
        """Whether part of the prompt is not yet in the KV cache."""
        return self.computed < len(self.prompt)


class LlamaCppScheduler:
    """
    Reads prompts and generates tokens, in one batch per step for all sequences.

    Decoding sequences come first; the rest of the batch is for prompts, the oldest first. The
    `StepSequence.state` is an `Answer`.

    Args:
        model: The model; unset options come from its metadata (``general.sampling.*``).
        cache: Its KV cache.
        sequences: How many sequences the cache has.
        context_length: Size of each sequence's cache, in tokens.
    """

    def __init__(self, model: Model, cache: Cache, *, sequences: int, context_length: int) -> None:
        self._model = model
        self._cache = cache
        self._window = context_length
        self._free = list(range(sequences))
        self._defaults = {name: _default(model, key, unset) for name, key, unset in _DEFAULTS}

    def admit(self, sequence: StepSequence) -> None:
        """Give a sequence a place in the cache, and add a received KV cache."""
        answer: Answer = sequence.state
        answer.sampler = self._sampler(sequence.request)
        answer.number = self._free.pop()
        if answer.received is not None:
            try:
                self._take_over(answer, answer.received)
            except BaseException:
                self.release(sequence)
                raise

    def step(self, sequences: list[StepSequence]) -> None:
        """Compute one batch, and emit a token of each sequence whose prompt was read."""
        rows: list[tuple[StepSequence, int]] = []
        for sequence in sorted(sequences, key=_is_reading):
            row = self._add(sequence.state)
            if row is not None:
                rows.append((sequence, row))
        self._cache.compute()
        for sequence, row in rows:
            self._emit(sequence, row)

    def release(self, sequence: StepSequence) -> None:
        """Free a sequence's place in the cache, and its sampler."""
        answer: Answer = sequence.state
        self._cache.remove(answer.number)
        self._free.append(answer.number)
        if answer.sampler is not None:
            answer.sampler.free()

    def _take_over(self, answer: Answer, received: bytes) -> None:
        length = len(answer.prompt)
        self._cache.import_sequence(answer.number, received)
        answer.received = None
        if self._cache.used(answer.number) != length:
            raise InvalidArgument(f"the KV cache received is not that of {length} prompt tokens")
        # Computing the last token again gives the logits after it.
        answer.computed = length - 1
        self._cache.remove(answer.number, answer.computed)

    def _add(self, answer: Answer) -> int | None:
        """Add a sequence's next tokens to the batch; return the row of its logits, if computed."""
        if answer.is_reading:
            tokens = answer.prompt[answer.computed : answer.computed + self._cache.batch_room]
            if not tokens:
                return None
        else:
            tokens = [answer.last]
        start = answer.computed
        answer.computed += len(tokens)
        last = not answer.is_reading
        row = self._cache.add(answer.number, tokens, start, last=last)
        return row if last else None

    def _emit(self, sequence: StepSequence, row: int) -> None:
        answer: Answer = sequence.state
        request = sequence.request
        chunk = LLMEngineOutput()
        wanted = request.output_options.logprobs
        # A copy: the sampler changes nothing in place, but minimum tokens do.
        logits = None if wanted is None else np.array(self._cache.logits(row), np.float64)
        if answer.stop and sequence.output_tokens < (request.stop_conditions.min_tokens or 0):
            self._cache.logits(row)[list(answer.stop)] = -np.inf
        assert answer.sampler is not None  # noqa: S101  # `admit` has made it
        token = answer.last = answer.sampler.sample(self._cache, row)
        chunk.token_ids = [token]
        if wanted is not None and logits is not None:
            self._add_log_probs(chunk, logits, token, wanted)
        if token in answer.stop:
            chunk.finish_reason = FinishReason.STOP
        elif sequence.output_tokens + 1 == answer.limit:
            chunk.finish_reason = FinishReason.LENGTH
        if chunk.finish_reason is not None and answer.keeps:
            answer.kept = self._cache.export_sequence(answer.number)
        sequence.emit(chunk)

    def _add_log_probs(
        self, chunk: LLMEngineOutput, logits: NDArray[np.float64], token: int, count: int
    ) -> None:
        highest = logits.max()
        values = logits - (highest + np.log(np.exp(logits - highest).sum()))
        chunk.log_probs = [float(values[token])]
        if count:
            best = np.argsort(-values, kind="stable")[:count]
            chunk.top_logprobs = [
                [
                    self._top(rank, int(each), float(values[each]))
                    for rank, each in enumerate(best, 1)
                ]
            ]

    def _top(self, rank: int, token_id: int, value: float) -> TopLogprob:
        text = self._model.text_of(token_id)
        return TopLogprob(
            rank=rank,
            token_id=token_id,
            token=text.decode(errors="replace"),
            logprob=value,
            bytes=list(text),
        )

    def _sampler(self, request: PreprocessedRequest) -> Sampler:
        options = request.sampling_options
        given: dict[str, Any] = {
            name: value for name in self._defaults if (value := getattr(options, name)) is not None
        }
        return Sampler(
            self._model,
            **self._defaults | given,
            frequency_penalty=options.frequency_penalty or 0.0,
            presence_penalty=options.presence_penalty or 0.0,
            window=self._window,
            seed=RANDOM_SEED if options.seed is None else options.seed % RANDOM_SEED,
            prompt=request.token_ids,
        )


# The option, the metadata's name for it, and the value with no effect.
_DEFAULTS = (
    ("temperature", "temp", 1.0),
    ("top_k", "top_k", 0.0),
    ("top_p", "top_p", 1.0),
    ("min_p", "min_p", 0.0),
    ("repetition_penalty", "penalty_repeat", 1.0),
)


def _default(model: Model, key: str, unset: float) -> float:
    value = model.metadata(f"general.sampling.{key}")
    return unset if value is None else float(value)


def _is_reading(sequence: StepSequence) -> bool:
    answer: Answer = sequence.state
    return answer.is_reading
