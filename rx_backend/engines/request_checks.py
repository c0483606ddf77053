"""Checks of a request for engines with a model; each failure names the field."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Final

from msgspec import Struct

from rx_backend.checks import fraction, integer, number
from rx_backend.errors import InvalidArgument
from rx_backend.protocols import PreprocessedRequest

__all__ = (
    "GREEDY_BELOW",
    "check_one_answer",
    "check_options",
    "check_prompt",
    "max_tokens",
    "output_tokens",
    "stop_token_ids",
)

GREEDY_BELOW: Final = 1e-5
"""A temperature below this counts as 0: dividing 32-bit logits by it would overflow."""

# Values at which an option has no effect, so that any engine honours it.
_NEUTRAL: Final[dict[str, tuple[object, ...]]] = {
    "sampling_options.n": (1,),
    "sampling_options.best_of": (1,),
    "sampling_options.presence_penalty": (0,),
    "sampling_options.frequency_penalty": (0,),
    "sampling_options.repetition_penalty": (1,),
    "sampling_options.top_p": (1,),
    "sampling_options.top_k": (0, -1),
    "sampling_options.min_p": (0,),
    "sampling_options.length_penalty": (1,),
}

# The valid ranges: outside of them engines produce nonsense.
_RANGES: Final[dict[str, Callable[[str, object], object]]] = {
    "presence_penalty": number,
    "frequency_penalty": number,
    "repetition_penalty": partial(number, low=0, above=True),
    "temperature": partial(number, low=0),
    "top_p": fraction,
    "top_k": partial(integer, low=-1),
    "min_p": fraction,
}

# Honoured by whoever detokenizes: the frontend, or the operator `stop_on_text`.
_OF_THE_TEXT: Final = frozenset(
    {
        "sampling_options.include_stop_str_in_output",
        "output_options.no_stop_trim",
        "output_options.skip_special_tokens",
        "output_options.formatted_prompt",
        "output_options.return_tokens_as_token_ids",
        "stop_conditions.stop",
    }
)

# Honoured by `output_tokens` and `stop_token_ids` for every engine.
_SHARED: Final = frozenset(
    f"stop_conditions.{name}"
    for name in (
        "max_tokens",
        "ignore_eos",
        "stop_token_ids",
        "stop_token_ids_visible",
        "stop_token_ids_hidden",
    )
)

_GROUPS: Final = ("stop_conditions", "sampling_options", "output_options")
_INPUTS: Final = ("prompt_embeds", "multi_modal_data", "encoder_result")


def check_prompt(
    request: PreprocessedRequest, *, context_length: int | None, vocab_size: int | None
) -> list[int]:
    """
    Return the prompt's token ids.

    Args:
        request: The request.
        context_length: Maximum of prompt and output together, in tokens; None if unknown.
        vocab_size: Token ids are below this; None if unknown.

    Raises:
        InvalidArgument: The prompt is empty, leaves no room for a token, or has ids that are not
            ``int`` or out of range.
    """
    ids = request.token_ids
    if not ids:
        raise InvalidArgument("token_ids: the prompt is empty")
    if context_length is not None and len(ids) >= context_length:
        raise InvalidArgument(
            f"token_ids: the prompt has {len(ids)} tokens, which leaves no room for an answer in the "
            f"model's context of {context_length} tokens (max)"
        )
    kinds = set(map(type, ids))
    if kinds != {int}:
        # vLLM's core accepts a bool, and never answers any request again.
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise InvalidArgument(f"token_ids: ids must be int, got {names}")
    low, high = min(ids), max(ids)
    if low < 0 or (vocab_size is not None and high >= vocab_size):
        most = "" if vocab_size is None else f" to {vocab_size - 1}"
        raise InvalidArgument(
            f"token_ids: ids must be from 0{most}, got {low if low < 0 else high}"
        )
    return ids


def max_tokens(request: PreprocessedRequest, default: int) -> int:
    """Return how many tokens *request* allows; raise `InvalidArgument` if it is less than 1."""
    wanted = request.stop_conditions.max_tokens
    if wanted is None:
        return default
    return integer("stop_conditions.max_tokens", wanted, low=1, unit="tokens")


def output_tokens(request: PreprocessedRequest, context_length: int) -> int:
    """
    Return how many tokens may be generated: ``max_tokens``, limited by the context.

    Raises:
        InvalidArgument: ``stop_conditions.max_tokens`` is below 1.
    """
    room = context_length - len(request.token_ids)
    return min(max_tokens(request, room), room)


def stop_token_ids(request: PreprocessedRequest, end_ids: Collection[int]) -> frozenset[int]:
    """
    Return the token ids that end the answer: the request's, and the model's unless it ignores them.

    Args:
        request: The request.
        end_ids: The model's own end-of-text ids.
    """
    stop = request.stop_conditions
    given = (stop.stop_token_ids, stop.stop_token_ids_visible, stop.stop_token_ids_hidden)
    asked = frozenset(token_id for ids in given if ids for token_id in ids)
    # The frontend adds the model's end of text to the hidden ones.
    end = frozenset((*end_ids, *request.eos_token_ids))
    return asked - end if stop.ignore_eos else asked | end


def check_options(engine: str, request: PreprocessedRequest, honoured: Collection[str]) -> None:
    """
    Reject options that an engine can't honour, instead of ignoring them, or that are out of range.

    Options that are None or have no effect, such as ``n=1``, are always accepted. So are those that
    `output_tokens` and `stop_token_ids` read, and those about text, such as stop strings, which the
    frontend or `operators.stop_on_text` handles.

    Args:
        engine: The engine's name, for the message.
        request: The request.
        honoured: The options that the engine honours, such as ``sampling_options.top_k``; inputs
            other than tokens by their field, such as ``prompt_embeds``.

    Raises:
        InvalidArgument: There are other options (the message names them), or one is out of range.

    >>> request = PreprocessedRequest(token_ids=[1], sampling_options={"seed": 7, "n": 1})
    >>> check_options("MyEngine", request, {"sampling_options.temperature"})
    Traceback (most recent call last):
    rx_backend.errors.InvalidArgument: BackendInvalidArgument: MyEngine can't honour sampling_options.seed
    """
    refused = [name for name in _requested(request) if name not in honoured]
    if refused:
        raise InvalidArgument(f"{engine} can't honour {', '.join(refused)}")
    for name, check in _RANGES.items():
        value = getattr(request.sampling_options, name)
        if value is not None:
            check(f"sampling_options.{name}", value)


def check_one_answer(request: PreprocessedRequest) -> None:
    """
    Reject a request for several answers, of which all but one would have no terminal.

    Raises:
        InvalidArgument: ``sampling_options.n`` is above 1.

    >>> check_one_answer(PreprocessedRequest(token_ids=[1], sampling_options={"n": 2}))
    Traceback (most recent call last):
    rx_backend.errors.InvalidArgument: BackendInvalidArgument: sampling_options.n: expected 1, got 2
    """
    answers = request.sampling_options.n
    if answers is not None and answers > 1:
        raise InvalidArgument(f"sampling_options.n: expected 1, got {answers}")


def _requested(request: PreprocessedRequest) -> Iterator[str]:
    """Yield the names of the options that a request sets."""
    for name in _INPUTS:
        if getattr(request, name) is not None:
            yield name
    for group in _GROUPS:
        options: Struct = getattr(request, group)
        # `msgspec.structs.fields` would evaluate the annotations again, which takes 2 ms.
        for field in options.__struct_fields__:
            name = f"{group}.{field}"
            value = getattr(options, field)
            if field == "unknown":
                yield from (f"{group}.{unknown}" for unknown in value or () if value[unknown])
            elif not _is_neutral(name, value):
                yield name


def _is_neutral(name: str, value: object) -> bool:
    if value is None or value is False or value == [] or name in _OF_THE_TEXT | _SHARED:
        return True
    return value in _NEUTRAL.get(name, ())
