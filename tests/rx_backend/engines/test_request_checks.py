"""What engines with a model refuse, and how the refusal reads."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rx_backend import InvalidArgument, PreprocessedRequest
from rx_backend.engines.request_checks import (
    check_options,
    check_prompt,
    output_tokens,
    stop_token_ids,
)


def _request(**fields: Any) -> PreprocessedRequest:
    fields.setdefault("token_ids", [1, 2, 3])
    return PreprocessedRequest(**fields)


@pytest.mark.parametrize(
    ("token_ids", "told"),
    [
        ([], "prompt is empty"),
        ([1] * 8, "8 tokens"),
        ([1] * 9, "9 tokens"),
        ([1, 10], "got 10"),
        ([-1, 1], "got -1"),
        ([1, True], "must be int, got bool, int"),
    ],
)
def test_invalid_prompts_are_rejected(token_ids: list[int], told: str) -> None:
    """Empty, without room for a token, with ids out of range: the message has the number."""
    with pytest.raises(InvalidArgument, match=told) as caught:
        check_prompt(_request(token_ids=token_ids), context_length=8, vocab_size=10)
    assert caught.value.message.startswith("token_ids: ")


def test_a_prompt_that_just_fits() -> None:
    """One token of room is enough."""
    ids = [0, 9, 5, 5, 5, 5, 5]
    assert check_prompt(_request(token_ids=ids), context_length=8, vocab_size=10) == ids


@pytest.mark.parametrize(("asked", "given"), [(None, 5), (1, 1), (5, 5), (6, 5), (10**6, 5)])
def test_output_is_limited_by_room(asked: int | None, given: int) -> None:
    """A request gets what it asks for, or what there is room for."""
    request = _request(stop_conditions={"max_tokens": asked})
    assert output_tokens(request, context_length=8) == given


def test_no_output_is_rejected() -> None:
    """Zero tokens is no answer."""
    with pytest.raises(InvalidArgument, match="max_tokens"):
        output_tokens(_request(stop_conditions={"max_tokens": 0}), context_length=8)


def test_stop_token_ids() -> None:
    """All lists count, with the model's own; `ignore_eos` takes out the model's own alone."""
    stop: dict[str, Any] = {
        "stop_token_ids": [3],
        "stop_token_ids_visible": [4],
        "stop_token_ids_hidden": [5, 2],
    }
    assert stop_token_ids(_request(stop_conditions=stop, eos_token_ids=[2]), [0]) == {0, 2, 3, 4, 5}
    stop["ignore_eos"] = True
    assert stop_token_ids(_request(stop_conditions=stop, eos_token_ids=[2]), [0]) == {3, 4, 5}
    assert stop_token_ids(_request(), ()) == frozenset()


def test_options_that_change_nothing_are_accepted() -> None:
    """What the frontend fills in for a client that asked for nothing is no option."""
    neutral = {
        "n": 1,
        "best_of": 1,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "length_penalty": 1.0,
        "use_beam_search": False,
        "include_stop_str_in_output": True,
    }
    stop = {"max_tokens": 3, "stop": ["x"], "stop_token_ids": [1], "ignore_eos": True}
    output = {"skip_special_tokens": True, "formatted_prompt": True}
    request = _request(sampling_options=neutral, stop_conditions=stop, output_options=output)
    check_options("Engine", request, ())


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"sampling_options": {"temperature": 0.0}}, ["sampling_options.temperature"]),
        ({"sampling_options": {"seed": 0}}, ["sampling_options.seed"]),
        ({"sampling_options": {"n": 2}}, ["sampling_options.n"]),
        ({"sampling_options": {"top_k": 1}}, ["sampling_options.top_k"]),
        (
            {"sampling_options": {"guided_decoding": {"regex": "a"}, "use_beam_search": True}},
            ["sampling_options.use_beam_search", "sampling_options.guided_decoding"],
        ),
        ({"sampling_options": {"dry": 1.5}}, ["sampling_options.dry"]),
        ({"stop_conditions": {"min_tokens": 2}}, ["stop_conditions.min_tokens"]),
        ({"output_options": {"logprobs": 0}}, ["output_options.logprobs"]),
        ({"prompt_embeds": "AA"}, ["prompt_embeds"]),
        ({"multi_modal_data": {"image_url": []}}, ["multi_modal_data"]),
    ],
)
def test_unsupported_options_are_rejected(fields: dict[str, Any], named: list[str]) -> None:
    """Each is named; with all of them honoured the request passes."""
    request = _request(**fields)
    with pytest.raises(InvalidArgument) as caught:
        check_options("Engine", request, ())
    assert caught.value.message == f"Engine can't honour {', '.join(named)}"
    check_options("Engine", request, named)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("top_k", -2),
        ("min_p", -0.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", -1.0),
        ("frequency_penalty", math.nan),
        ("presence_penalty", -math.inf),
    ],
)
def test_options_out_of_range(name: str, value: float) -> None:
    """They are refused by name, as what an engine makes of them is nonsense."""
    request = _request(sampling_options={name: value})
    with pytest.raises(InvalidArgument, match=f"sampling_options.{name}: expected"):
        check_options("Engine", request, {f"sampling_options.{name}"})


def test_options_at_the_ends_of_their_ranges() -> None:
    """They are accepted."""
    low = {"temperature": 0.0, "top_p": 0.0, "top_k": -1, "min_p": 0.0, "presence_penalty": -2.0}
    high = {"temperature": 100.0, "top_p": 1.0, "min_p": 1.0, "presence_penalty": 2.0}
    for options in (low, high):
        named = {f"sampling_options.{name}" for name in options}
        check_options("Engine", _request(sampling_options=options), named)
