"""What vLLM yields, as chunks; without vLLM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rx_backend.engines.vllm.outputs import Answers
from rx_backend.protocols import PreprocessedRequest, SamplingOptions


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
