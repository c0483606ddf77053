"""`operators.validate_contract`."""

from __future__ import annotations

import pytest

from operators import ContractViolation, validate_contract
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
def test_the_error_says_what_came_after_the_terminal(life: Life) -> None:
    """The message shows the tokens and the finish reason of the chunk that should not be there."""
    seen = life([terminal(), terminal(7, reason="length")], validate_contract())
    assert isinstance(seen.error, ContractViolation)
    assert str(seen.error) == "item after the terminal: token_ids=[7], finish_reason=length"


@pytest.mark.rows("E3")
def test_the_error_says_that_the_terminal_is_missing(life: Life) -> None:
    """The message of a stream that just ends is another one."""
    seen = life([handshake()], validate_contract())
    assert isinstance(seen.error, ContractViolation)
    assert str(seen.error) == "the stream ended without a terminal"
