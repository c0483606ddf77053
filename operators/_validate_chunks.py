"""Let only well-formed chunks through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from operators._chunk import IS_TERMINAL, Chunk
from operators._core.operator import callbacks
from operators._core.stage import Callbacks

__all__ = ("validate_chunks",)

C = TypeVar("C", bound=Chunk)


@callbacks(takes="chunks", shared=True)
def validate_chunks(
    chunk_type: type[C],
    convert: Callable[[Any], C],
    *,
    error: Callable[[str], Exception] = ValueError,
    normalize: Callable[[C], C] | None = None,
) -> Callbacks[Any, C]:
    """
    Pass well-formed chunks, convert what can be converted, and fail on the rest (row E2).

    ``m`` is a mapping of a chunk's shape, ``C`` the chunk made of it, ``x`` something else::

        source  ---a-m-x
        result  ---a-C-#

    Args:
        chunk_type: The exact class of a chunk.
        convert: Converts any other item to a chunk; raises if it can't.
        error: Makes the exception for a malformed chunk from a message that names the field.
        normalize: Called with every terminal, and with every chunk that does not have exactly one
            token; returns the chunk, or a corrected copy, or raises.

    Phase: chunks; part of the standard pipeline, first.
    Errors: source errors pass unchanged. A token id that is not an ``int``, negative, or beyond 32
        bits fails the stream with *error*; an item that is not a chunk fails it with what *convert*
        raises.
    On dispose: nothing.

    >>> import reactivex
    >>> from rx_backend import InvalidArgument, LLMEngineOutput
    >>> from rx_backend.protocols import convert_output
    >>> checked = validate_chunks(LLMEngineOutput, convert_output, error=InvalidArgument)
    >>> bad = reactivex.of(LLMEngineOutput(token_ids=[1, -2]))
    >>> _ = bad.pipe(checked).subscribe(on_error=print)
    BackendInvalidArgument: token_ids[1]: expected an int from 0 to 4294967295, got -2
    """

    def check(item: Any) -> C:
        chunk: C = item if type(item) is chunk_type else convert(item)
        token_ids: Any = chunk.token_ids
        if type(token_ids) is not list and not isinstance(token_ids, Sequence):
            raise error(f"token_ids: expected a list of ints, got {token_ids!r}")
        for place, token_id in enumerate(chunk.token_ids):
            if type(token_id) is not int or not 0 <= token_id <= _LIMIT:
                raise error(
                    f"token_ids[{place}]: expected an int from 0 to {_LIMIT}, got {token_id!r}"
                )
        return chunk if normalize is None else normalize(chunk)

    return Callbacks(check, only=_IS_UNUSUAL, names={"chunk_type": chunk_type})


_LIMIT = (1 << 32) - 1
# Anything but a chunk of one plausible token. Comparing with an int of one digit (in CPython) is
# several times faster than with the real limit.
_IS_UNUSUAL = (
    "type(item) is not chunk_type or type(ids := item.token_ids) is not list "
    "or len(ids) != 1 or type(token_id := ids[0]) is not int "
    f"or not 0 <= token_id <= {(1 << 30) - 1} or {IS_TERMINAL}"
)
