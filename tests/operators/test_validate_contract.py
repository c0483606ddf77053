"""`operators.validate_contract`."""

from __future__ import annotations

from typing import Any

import pytest

from operators import ContractViolation, validate_contract
from rx_backend.protocols import LLMEngineOutput
from rx_backend.testing import MarbleFailure, assert_marbles
from tests.operators._help import LETTERS, Life, handshake, terminal


@pytest.mark.rows("E3", "S8")
@pytest.mark.parametrize(
    ("source", "result", "subscription", "error"),
    [
        pytest.param("--|", "--#", "^-!", ContractViolation, id="empty"),
        pytest.param("--T|", "--T|", "^--!", None, id="one"),
        pytest.param("-h-a-b-U|", "-h-a-b-U|", "^-------!", None, id="many"),
        pytest.param("-a-b-|", "-a-b-#", "^----!", ContractViolation, id="no-terminal"),
        pytest.param("-a-T-b-c-|", "-a-T-#", "^----!", ContractViolation, id="item-after"),
        pytest.param("-T-T-|", "-T-#", "^--!", ContractViolation, id="two-terminals"),
        pytest.param("-(aTb)|", "-(aT#)", "^!", ContractViolation, id="item-after-at-once"),
        pytest.param("-a-#", "-a-#", "^--!", MarbleFailure, id="source-error"),
        pytest.param("-T-#", "-T-#", "^--!", MarbleFailure, id="source-error-after"),
        pytest.param("-a-T-b-|", "-a-(T!)", "^--!", None, id="dispose-inside-the-terminal"),
    ],
)
def test_a_broken_stream_fails(
    source: str, result: str, subscription: str, error: type[Exception] | None
) -> None:
    """Chunks pass; an item after the terminal, or an end without one, is an error at that moment."""
    outcome = assert_marbles(
        validate_contract(),
        source=source,
        result=result,
        values=LETTERS,
        result_error=error,
        subscriptions=[subscription],
    )
    assert type(outcome.error) is (error or type(None))


@pytest.mark.rows("E3", "S8")
@pytest.mark.parametrize(
    ("answers", "chunks", "text"),
    [
        (
            1,
            [terminal(), terminal(7, reason="length")],
            "item after the terminal: token_ids=[7], finish_reason=length",
        ),
        (1, [handshake()], "the stream ended without a terminal"),
        (2, [terminal()], "the stream ended without a terminal of 1 of 2 answers"),
        (
            2,
            [terminal(), terminal()],
            "item after the terminal of answer 0: token_ids=[], finish_reason=stop",
        ),
        (
            2,
            [LLMEngineOutput([7], index=2)],
            "item with index 2, expected one below 2: token_ids=[7], finish_reason=None",
        ),
    ],
)
def test_the_error_says_what_is_wrong(
    life: Life, answers: int, chunks: list[Any], text: str
) -> None:
    """It shows the chunk that should not be there, or that there is no terminal."""
    seen = life(chunks, validate_contract(answers=answers))
    assert isinstance(seen.error, ContractViolation)
    assert str(seen.error) == text
