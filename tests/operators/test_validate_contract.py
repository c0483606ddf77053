"""`operators.validate_contract`."""

from __future__ import annotations

import pytest

from operators import ContractViolation, fuse, until_terminal, validate_contract
from rx_backend.testing import MarbleFailure, assert_marbles
from tests.operators._help import LETTERS, Engine, Life, handshake, terminal, token, virtual


@pytest.mark.rows("E3", "S8")
@pytest.mark.parametrize(
    ("source", "result", "subscription", "error"),
    [
        pytest.param("----", "----", "^", None, id="never"),
        pytest.param("--|", "--#", "^-!", ContractViolation, id="empty"),
        pytest.param("--T|", "--T|", "^--!", None, id="one"),
        pytest.param("-h-a-b-U|", "-h-a-b-U|", "^-------!", None, id="many"),
        pytest.param("-a-b-|", "-a-b-#", "^----!", ContractViolation, id="no-terminal"),
        pytest.param("-a-T-b-c-|", "-a-T-#", "^----!", ContractViolation, id="item-after"),
        pytest.param("-T-T-|", "-T-#", "^--!", ContractViolation, id="two-terminals"),
        pytest.param("-(aTb)|", "-(aT#)", "^!", ContractViolation, id="item-after-at-once"),
        pytest.param("-a-#", "-a-#", "^--!", MarbleFailure, id="source-error"),
        pytest.param("-T-#", "-T-#", "^--!", MarbleFailure, id="source-error-after"),
        pytest.param("-a-T", "-a-T", "^", None, id="no-end"),
        pytest.param("-a-b-|", "-a-!", "^--!", None, id="early-dispose"),
        pytest.param("-a-b-|", "-a-(b!)", "^--!", None, id="dispose-inside"),
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


@pytest.mark.rows("S6")
def test_the_error_can_be_of_any_kind(life: Life) -> None:
    """``error`` makes the exception from the message."""
    seen = life([], validate_contract(error=LookupError))
    assert seen.end == "LookupError('the stream ended without a terminal')"


@pytest.mark.rows("S1")
def test_a_sound_stream_passes_unchanged(life: Life) -> None:
    """The chunks that come out are the source's own objects."""
    chunks = [handshake(), token(1), terminal(2)]
    seen = life(chunks, validate_contract())
    assert seen.end == "completed"
    assert list(map(id, seen.items)) == list(map(id, chunks))


@pytest.mark.rows("S8")
def test_behind_until_terminal_only_a_missing_terminal_shows(life: Life) -> None:
    """What comes after the terminal is cut off before it gets here."""
    assert life([terminal(), token(1)], until_terminal(), validate_contract()).error is None
    assert life([token(1)], until_terminal(), validate_contract()).error is not None


@pytest.mark.rows("S8")
@virtual
async def test_a_violation_releases_the_engine() -> None:
    """The engine is closed when its surplus item is found."""
    engine = Engine([terminal(), token(1), token(2)])
    stream = fuse(engine(), [validate_contract()])
    await anext(stream)
    with pytest.raises(ContractViolation):
        await anext(stream)
    assert engine.journal == ["pull", "pull", "closed"]


def test_every_subscription_is_judged_on_its_own() -> None:
    """A terminal in one subscription is none in the next."""
    operator = validate_contract()
    assert_marbles(operator, source="-T-|", result="-T-|", values=LETTERS)
    assert_marbles(operator, source="-a-|", result="-a-#", values=LETTERS)
