"""
llama.cpp's models, KV caches and samplers, as far as the engine needs them.

Nothing here is thread-safe: use an object in one thread.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_int8, c_int32
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rx_backend.engines.llama_cpp.library import Batch, library
from rx_backend.engines.request_checks import GREEDY_BELOW
from rx_backend.errors import InvalidArgument

__all__ = ("RANDOM_SEED", "Cache", "Model", "Sampler")

RANDOM_SEED: Final = 0xFFFFFFFF
"""The value that means a random seed."""


class Model:
    """
    A model's weights and vocabulary.

    Args:
        path: A GGUF file.
        gpu_layers: How many layers to put on a GPU, if the library supports one; -1 for all.

    Raises:
        InvalidArgument: llama.cpp can't load the file.
    """

    def __init__(self, path: str | Path, *, gpu_layers: int = 0) -> None:
        llama = self._llama = library()
        params = llama.model_default_params()
        params.n_gpu_layers = gpu_layers
        if not Path(path).is_file():
            found = "a folder" if Path(path).is_dir() else "nothing there"
            raise InvalidArgument(f"model_path: expected a GGUF file, got {path}: {found}")
        self.handle: int | None = llama.model_load_from_file(str(path).encode(), params)
        if self.handle is None:
            raise InvalidArgument(
                f"model_path: expected a GGUF file that llama.cpp can load, got {path}"
            )
        self.trained_context: int = llama.model_n_ctx_train(self.handle)
        self._vocab = llama.model_get_vocab(self.handle)
        self.vocab_size: int = llama.vocab_n_tokens(self._vocab)
        is_end = llama.vocab_is_eog
        self.end_ids = frozenset(n for n in range(self.vocab_size) if is_end(self._vocab, n))

    def metadata(self, key: str) -> str | None:
        """Return a value of the file's metadata, as text."""
        text = ctypes.create_string_buffer(256)
        length = self._llama.model_meta_val_str(self.handle, key.encode(), text, len(text))
        return None if length < 0 else text.value.decode()

    def text_of(self, token_id: int) -> bytes:
        """Return a token's text in UTF-8; empty if the model has no vocabulary."""
        if not self._llama.vocab_type(self._vocab):
            return b""
        text = ctypes.create_string_buffer(256)
        length = self._llama.token_to_piece(self._vocab, token_id, text, len(text), 0, True)
        return text.raw[: max(length, 0)]

    def free(self) -> None:
        """Free the weights, after everything that uses them. Idempotent."""
        handle, self.handle = self.handle, None
        if handle is not None:
            self._llama.model_free(handle)


class Cache:
    """
    A model's KV cache for several sequences, and the next batch of tokens.

    Args:
        model: The model.
        context_length: Size of each sequence's cache, in tokens.
        sequences: The number of sequences; they are numbered from 0.
        batch_tokens: Maximum of tokens in a batch.
        threads: The number of compute threads.

    Raises:
        InvalidArgument: llama.cpp can't create the cache, for example for lack of memory, or can't
            count its tokens.
    """

    def __init__(
        self, model: Model, *, context_length: int, sequences: int, batch_tokens: int, threads: int
    ) -> None:
        llama = self._llama = library()
        params = llama.context_default_params()
        if context_length * sequences >= 2**32:
            raise InvalidArgument(
                f"context_length: {sequences} sequences of {context_length} tokens are more than "
                "llama.cpp can count"
            )
        params.n_ctx = context_length * sequences
        params.n_seq_max = sequences
        params.n_batch = params.n_ubatch = batch_tokens
        params.n_threads = params.n_threads_batch = threads
        self.handle: int | None = llama.init_from_model(model.handle, params)
        if self.handle is None:
            raise InvalidArgument(
                f"llama.cpp has no room for {sequences} sequences of {context_length} tokens"
            )
        self._memory = llama.get_memory(self.handle)
        self._vocab_size = model.vocab_size
        self._size = batch_tokens
        self._count = 0
        self._make_batch(batch_tokens)

    def _make_batch(self, size: int) -> None:
        self._tokens, self._positions, self._numbers = (np.zeros(size, np.int32) for _ in range(3))
        self._wanted = np.zeros(size, np.int8)
        ones = (c_int32 * size)(*[1] * size)
        of_each = (POINTER(c_int32) * size)()
        address = self._numbers.ctypes.data
        for place in range(size):
            of_each[place] = ctypes.cast(address + 4 * place, POINTER(c_int32))
        self._batch = Batch(
            0,
            self._tokens.ctypes.data_as(POINTER(c_int32)),
            None,
            self._positions.ctypes.data_as(POINTER(c_int32)),
            ones,
            of_each,
            self._wanted.ctypes.data_as(POINTER(c_int8)),
        )

    @property
    def batch_room(self) -> int:
        """How many tokens the batch has room for."""
        return self._size - self._count

    def add(self, sequence: int, tokens: Sequence[int], position: int, *, last: bool) -> int:
        """
        Add tokens of one sequence to the batch.

        Args:
            sequence: The sequence's number.
            tokens: The tokens, at most `batch_room`.
            position: The first token's position in the sequence, from 0.
            last: Whether to compute the logits after the last token.

        Returns:
            The row of these logits.
        """
        start, end = self._count, self._count + len(tokens)
        self._tokens[start:end] = tokens
        self._positions[start:end] = range(position, position + len(tokens))
        self._numbers[start:end] = sequence
        self._wanted[start:end] = 0
        self._wanted[end - 1] = last
        self._count = end
        return end - 1

    def compute(self) -> None:
        """
        Compute the batch and empty it.

        Raises:
            RuntimeError: llama.cpp failed; the caller must remove the batch's sequences.
        """
        self._batch.n_tokens, self._count = self._count, 0
        if not self._batch.n_tokens:
            return
        status = self._llama.decode(self.handle, self._batch)
        if status:
            raise RuntimeError(f"llama_decode failed with status {status}")

    def logits(self, row: int) -> NDArray[np.float32]:
        """Return the logits of a row, to read or change, valid until the next `compute`."""
        address = self._llama.get_logits_ith(self.handle, row)
        return np.ctypeslib.as_array(address, (self._vocab_size,))

    def used(self, sequence: int) -> int:
        """Return how many tokens of a sequence are in the cache."""
        return self._llama.memory_seq_pos_max(self._memory, sequence) + 1

    def remove(self, sequence: int, start: int = 0) -> None:
        """
        Remove a sequence's tokens from *start* on.

        Raises:
            RuntimeError: The model's cache can only be removed as a whole.
        """
        if not self._llama.memory_seq_rm(self._memory, sequence, start, -1):
            raise RuntimeError("this model's cache can only be removed as a whole")

    def export_sequence(self, sequence: int) -> bytes:
        """Return a sequence's part of the cache, for `import_sequence` with the same model."""
        data = ctypes.create_string_buffer(self._llama.state_seq_get_size(self.handle, sequence))
        written = self._llama.state_seq_get_data(self.handle, data, len(data), sequence)
        return data.raw[:written]

    def import_sequence(self, sequence: int, data: bytes) -> None:
        """
        Add the result of `export_sequence` to the cache.

        Raises:
            InvalidArgument: It is damaged, or from another model.
        """
        if not self._llama.state_seq_set_data(self.handle, data, len(data), sequence):
            raise InvalidArgument(f"{len(data)} bytes of KV cache do not fit this model")

    def free(self) -> None:
        """Free the cache. Idempotent."""
        handle, self.handle = self.handle, None
        if handle is not None:
            self._llama.free(handle)


class Sampler:
    """
    Chooses one sequence's tokens from its logits.

    Args:
        model: The model.
        temperature: Below `GREEDY_BELOW`, always the likeliest token.
        top_k: How many of the likeliest tokens are candidates; all if it is below 1.
        top_p: The minimum of the candidates' joint probability.
        min_p: The minimum of a candidate's probability, relative to the likeliest one's.
        repetition_penalty: Divides the logits of tokens in the prompt and the answer; 1 for none.
        frequency_penalty: Subtracted for each time that the answer has the token.
        presence_penalty: Subtracted once if the answer has the token.
        window: The number of latest tokens that penalties count.
        seed: `RANDOM_SEED` for a random one.
        prompt: The prompt, for the repetition penalty.
    """

    def __init__(
        self,
        model: Model,
        *,
        temperature: float = 1.0,
        top_k: float = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        window: int = 0,
        seed: int = RANDOM_SEED,
        prompt: Sequence[int] = (),
    ) -> None:
        llama = self._llama = library()
        self._chain: int | None = llama.sampler_chain_init(llama.sampler_chain_default_params())
        size = model.vocab_size
        if repetition_penalty != 1:
            penalty = llama.sampler_init_penalties(size, window, repetition_penalty, 0.0, 0.0)
            for token_id in prompt:
                llama.sampler_accept(penalty, token_id)
            self._add(penalty)
        counted = (frequency_penalty, presence_penalty)
        if any(counted):
            self._add(llama.sampler_init_penalties(size, window, 1.0, *counted))
        if temperature < GREEDY_BELOW:
            self._add(llama.sampler_init_greedy())
            return
        if top_k > 0:
            self._add(llama.sampler_init_top_k(int(top_k)))
        if temperature != 1:
            self._add(llama.sampler_init_temp(temperature))
        if top_p < 1:
            self._add(llama.sampler_init_top_p(top_p, 1))
        if min_p > 0:
            self._add(llama.sampler_init_min_p(min_p, 1))
        self._add(llama.sampler_init_dist(seed))

    def _add(self, sampler: int) -> None:
        self._llama.sampler_chain_add(self._chain, sampler)

    def sample(self, cache: Cache, row: int) -> int:
        """Choose a token from the logits of a row."""
        return self._llama.sampler_sample(self._chain, cache.handle, row)

    def free(self) -> None:
        """Free the chain. Idempotent."""
        chain, self._chain = self._chain, None
        if chain is not None:
            self._llama.sampler_free(chain)
