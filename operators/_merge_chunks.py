"""Which waiting chunks are merged, and how."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import cache
from typing import Any, TypeVar, cast

from operators._chunk import PER_TOKEN, answer_of

__all__ = ("merge_chunks",)

A = TypeVar("A")

_OPTIONAL = (*PER_TOKEN, "text", "cum_log_probs")
_MERGED = frozenset(("token_ids", *_OPTIONAL, "index", "output_type"))
_DATA = frozenset(("data",))


def merge_chunks(items: Iterable[A]) -> tuple[list[A], int]:
    """
    Merge as many of *items* as possible, from the first on, into one chunk per answer.

    Chunks are recognised by their shape: anything with ``token_ids``. An item with ``data`` instead
    is an envelope around a chunk, such as ``rx_backend.Annotated``; the merged chunk is in an
    envelope too.

    =================================  ==================================================
    field                              of the merged chunk
    =================================  ==================================================
    token_ids                          those of all, in order
    tokens, log_probs, top_logprobs    those of all; all chunks have it, or none has
    text                               those of all, joined; all chunks have it, or none has
    cum_log_probs                      that of the last; all chunks have it, or none has
    index                              the same on all
    =================================  ==================================================

    Interleaved answers are merged separately, by ``index``: ``a0 b0 a1 b1`` becomes ``a01 b01``.
    The order within an answer is kept.

    Any other field that is set, above all ``finish_reason``, is a barrier: such a chunk is not
    merged, and nothing is merged across it. The same holds for output types other than text, a
    chunk with a list that does not have an entry for each token, an envelope with more than data,
    and items that are not chunks or can't be changed. A field is set if it is not None; fields that
    a class adds count too.

    The chunks themselves are not changed: engines may share them. A run of any length costs one
    copy per answer.

    Args:
        items: The waiting items, in order; at least one.

    Returns:
        The merged items, one per answer, in the order of the answers' first chunks; and how many of
        *items* they consist of. A single item is returned itself.

    >>> from rx_backend import LLMEngineOutput
    >>> waiting = [LLMEngineOutput([1]), LLMEngineOutput([2, 3]), LLMEngineOutput.stop()]
    >>> merge_chunks(waiting)
    ([LLMEngineOutput(token_ids=[1, 2, 3])], 2)
    >>> merge_chunks(waiting[2:])
    ([LLMEngineOutput(finish_reason=FinishReason.STOP)], 1)
    """
    runs: dict[int, tuple[tuple[object, ...], list[A]]] = {}
    count = 0
    for item in items:
        key = _key(item)
        if key is None:
            if not count:
                return [item], 1
            break
        own_key, run = runs.setdefault(answer_of(cast("Any", _chunk_of(item))), (key, []))
        if key != own_key:
            break
        run.append(item)
        count += 1
    try:
        return [
            run[0] if len(run) == 1 else cast("A", _joined(run)) for _, run in runs.values()
        ], count
    except AttributeError:
        # A frozen class.
        return [next(iter(runs.values()))[1][0]], 1


def _chunk_of(item: object) -> object:
    return item if hasattr(item, "token_ids") else getattr(item, "data", None)


def _key(item: object) -> tuple[object, ...] | None:
    """Return what items must have in common to be merged; None if it can't be merged."""
    chunk = cast("Any", _chunk_of(item))
    if chunk is not item and not _has_only(item, _DATA):
        return None
    if not hasattr(chunk, "token_ids") or not _has_only(chunk, _MERGED):
        return None
    if getattr(chunk, "output_type", None) not in {None, "text"}:
        return None
    for name in PER_TOKEN:
        entries = getattr(chunk, name, None)
        if entries is not None and len(entries) != len(chunk.token_ids):
            return None
    is_missing = (getattr(chunk, name, None) is None for name in _OPTIONAL)
    return (type(item), cast("object", type(chunk)), getattr(chunk, "index", None), *is_missing)


def _has_only(item: object, names: frozenset[str]) -> bool:
    """Return whether only some of *names* are set on *item*."""
    for name in _slots(type(item)):
        if name not in names and getattr(item, name, None) is not None:
            return False
    others = getattr(item, "__dict__", None)
    return not others or all(value is None or name in names for name, value in others.items())


@cache
def _slots(kind: type) -> tuple[str, ...]:
    """Return the fields that a class has slots for."""
    named = (vars(base).get("__slots__", ()) for base in kind.__mro__)
    slots = (name for names in named for name in ([names] if isinstance(names, str) else names))
    return tuple(name for name in slots if not name.startswith("__"))


def _joined(run: list[Any]) -> Any:
    """Merge several items with the same key into one."""
    merged = copy.copy(run[0])
    if not hasattr(merged, "token_ids"):
        merged.data = _joined([item.data for item in run])
        return merged
    for name in ("token_ids", *PER_TOKEN):
        if getattr(merged, name, None) is not None:
            setattr(merged, name, [entry for chunk in run for entry in getattr(chunk, name)])
    if getattr(merged, "text", None) is not None:
        merged.text = "".join([chunk.text for chunk in run])
    if getattr(merged, "cum_log_probs", None) is not None:
        merged.cum_log_probs = run[-1].cum_log_probs
    return merged
