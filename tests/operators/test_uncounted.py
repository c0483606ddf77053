"""Operators that count token ids, over engines that give text only."""

from __future__ import annotations

from typing import Any

import pytest

from operators import limit_tokens, usage
from operators._uncounted import warn_of_uncounted
from rx_backend import LLMEngineOutput, protocols
from rx_backend.protocols import CompletionUsage
from tests.operators._help import pushed


@pytest.fixture(autouse=True)
def as_a_new_process() -> None:
    warn_of_uncounted.cache_clear()


@pytest.mark.parametrize("operator", [limit_tokens(2), usage(3, protocols.usage)])
def test_text_without_token_ids_is_logged_once(
    operator: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """In a warning that names the operator, however many answers follow."""
    answer = (LLMEngineOutput(text="one"), LLMEngineOutput(text=" two"), LLMEngineOutput.stop())
    for _ in range(3):
        pushed(answer, operator)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(
        ("limit_tokens: an answer has text but no token ids", "usage: an answer has text but no")
    )


@pytest.mark.parametrize("operator", [limit_tokens(9), usage(3, protocols.usage)])
@pytest.mark.parametrize(
    "chunks",
    [
        [LLMEngineOutput()],
        # As of an operator that has put other text in place of what came.
        [LLMEngineOutput(text="***"), LLMEngineOutput([1], text="a")],
    ],
)
def test_an_answer_with_token_ids_causes_no_warning(
    operator: Any, chunks: list[LLMEngineOutput], caplog: pytest.LogCaptureFixture
) -> None:
    """Nor one without any content."""
    pushed([*chunks, LLMEngineOutput.stop()], operator)
    assert not caplog.records


def test_an_engine_with_its_own_usage_causes_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Its usage is kept, so nothing is wrong."""
    last = LLMEngineOutput.stop().with_usage(CompletionUsage(3, 2, 5))
    pushed([LLMEngineOutput(text="a b"), last], usage(3, protocols.usage))
    assert not caplog.records
