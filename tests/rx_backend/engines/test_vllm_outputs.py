"""What vLLM yields, as chunks; without vLLM."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from rx_backend.engines.vllm.outputs import Answers
from rx_backend.protocols import (
    LLMEngineOutput,
    OutputOptions,
    PreprocessedRequest,
    PromptTokensDetails,
    SamplingOptions,
    TopLogprob,
    usage,
)


def output(*parts: tuple[int, list[int], str | None]) -> Any:
    """Return a ``RequestOutput`` of what is new of some answers."""
    return SimpleNamespace(
        num_cached_tokens=None,
        prompt_logprobs=None,
        outputs=[
            SimpleNamespace(
                index=index, token_ids=ids, finish_reason=reason, stop_reason=None, logprobs=None
            )
            for index, ids, reason in parts
        ],
    )


@pytest.mark.rows("E3", "P11")
@pytest.mark.parametrize("ends", [True, False], ids=["ends", "stopped"])
def test_each_terminal_counts_the_tokens_of_its_answer(ends: bool) -> None:
    """So the terminals of several answers add up to what the request cost."""
    request = PreprocessedRequest(token_ids=[1, 2], sampling_options=SamplingOptions(n=2))
    answers = Answers(request)
    chunks = [*answers.chunks(output((0, [7, 8], None), (1, [9], None)))]
    chunks += answers.chunks(output((0, [7], "length")))
    chunks += answers.chunks(output((1, [9], "length"))) if ends else answers.cancelled()
    counts = {chunk.index: chunk.completion_usage for chunk in chunks if chunk.finish_reason}
    told = [(index, each and each.completion_tokens) for index, each in counts.items()]
    assert told == [(0, 3), (1, 2 if ends else 1)]


@pytest.mark.rows("E4")
def test_what_comes_beside_the_tokens() -> None:
    """With them their log probabilities, the likeliest first; the prompt's, and its cache, at the end."""
    request = PreprocessedRequest(token_ids=[1, 2], output_options=OutputOptions(logprobs=2))
    ranked = {
        token: SimpleNamespace(rank=rank, logprob=logprob)
        for token, rank, logprob in ((9, 3, -math.inf), (8, 2, -1.0), (7, 1, -0.5))
    }
    found = output((0, [9], None))
    found.num_cached_tokens, found.prompt_logprobs = 1, [None, {2: ranked[7]}]
    found.outputs[0].logprobs = [ranked]
    answers = Answers(request)
    tops = [
        TopLogprob(rank=1, token_id=7, logprob=-0.5),
        TopLogprob(rank=2, token_id=8, logprob=-1.0),
    ]
    first = LLMEngineOutput([9], log_probs=[-9999.0], top_logprobs=[tops])
    assert [*answers.chunks(found)] == [first]
    counts = usage(2, 1)
    counts.prompt_tokens_details = PromptTokensDetails(cached_tokens=1)
    end = LLMEngineOutput.cancelled().with_usage(counts)
    end.engine_data = {"prompt_logprobs": [None, {"2": {"logprob": -0.5, "rank": 1}}]}
    assert [*answers.cancelled()] == [end]
