"""`operators.until_terminal`."""

from __future__ import annotations

import pytest

from operators import until_terminal
from rx_backend import FinishReason, LLMEngineOutput
from rx_backend.testing import assert_marbles
from tests.operators._help import LETTERS, Life, Seen, terminal, token


@pytest.mark.rows("S2", "S8")
@pytest.mark.parametrize(
    ("source", "result", "subscription"),
    [
        pytest.param("--|", "--|", "^-!", id="empty"),
        pytest.param("--T-|", "--(T|)", "^-!", id="one"),
        pytest.param("-a-b-U-|", "-a-b-(U|)", "^----!", id="many"),
        pytest.param("-a-T-b-T-|", "-a-(T|)", "^--!", id="items-after"),
        pytest.param("-(aTb)-|", "-(aT|)", "^!", id="items-after-at-once"),
        pytest.param("-a-T-#", "-a-(T|)", "^--!", id="error-after"),
        pytest.param("-a-#", "-a-#", "^--!", id="source-error"),
        pytest.param("-a-b-|", "-a-b-|", "^----!", id="no-terminal"),
        pytest.param("-a-T-|", "-a-(T!)", "^--!", id="dispose-inside-the-last"),
    ],
)
def test_the_stream_ends_with_its_first_terminal(
    source: str, result: str, subscription: str
) -> None:
    """The terminal comes out, the source is left in that moment, and nothing comes after it."""
    assert_marbles(
        until_terminal(),
        source=source,
        result=result,
        values=LETTERS,
        subscriptions=[subscription],
    )


@pytest.mark.rows("E3")
@pytest.mark.parametrize("reason", ["cancelled", 0, "", False])
def test_any_finish_reason_is_a_terminal(life: Life, reason: object) -> None:
    """Whatever is not None counts as a finish reason, be it false."""
    last = terminal(reason=reason)
    assert life([last, token(1)], until_terminal()) == Seen([last], "completed")


@pytest.mark.rows("E3", "S2")
def test_the_last_of_several_answers_ends_the_stream(life: Life) -> None:
    """What an answer still has behind its terminal is dropped; the others are not disturbed."""

    def of(index: int | None, reason: FinishReason | None = None) -> LLMEngineOutput:
        return LLMEngineOutput([7], index=index, finish_reason=reason)

    chunks = [of(0), of(1), of(1, FinishReason.STOP), of(1), of(None), of(0, FinishReason.LENGTH)]
    seen = life([*chunks, of(1)], until_terminal(2))
    assert seen == Seen([*chunks[:3], *chunks[4:]], "completed")
