"""`operators.annotate_errors`."""

from __future__ import annotations

import asyncio

import pytest

from operators import annotate_errors, fuse
from rx_backend.testing import Marbles
from tests.operators._help import Engine, Life, Seen, collect, observed, spy

FAILURE = LookupError("gone")


def shout(item: str) -> str:
    return item.upper()


def tell(error: Exception) -> str:
    return f"E: {error}"


@pytest.mark.rows("S6")
@pytest.mark.parametrize(
    ("source", "result", "subscription"),
    [
        pytest.param("--|", "--|", "^-!", id="empty"),
        pytest.param("--a|", "--A|", "^--!", id="one"),
        pytest.param("-a-b-(c|)", "-A-B-(C|)", "^----!", id="many"),
        pytest.param("--#", "--(E|)", "^-!", id="source-error-alone"),
        pytest.param("-a-b-#", "-A-B-(E|)", "^----!", id="source-error"),
        pytest.param("-a-#", "-A-(E!)", "^--!", id="dispose-inside-the-error-item"),
    ],
)
def test_items_are_wrapped_and_a_failure_becomes_the_last_item(
    source: str, result: str, subscription: str
) -> None:
    """Each item is wrapped when it comes; a failure becomes one item, and then the end."""
    test = Marbles({"E": "E: gone"}, error=FAILURE)
    played = test.cold(source)
    test.expect(played.pipe(annotate_errors(shout, tell)), result)
    assert played.subscriptions == [subscription]


@pytest.mark.rows("S6")
def test_a_failure_of_an_earlier_operator_is_annotated(life: Life) -> None:
    """What an earlier operator raises is a failure as well."""

    def refuse(item: str) -> str:
        raise LookupError(item)

    broken = annotate_errors(refuse, tell)
    assert life(["a", "b"], broken, annotate_errors(shout, tell)) == Seen(["E: a"], "completed")


def test_an_exception_of_the_functions_replaces_the_failure(life: Life) -> None:
    """It is not turned into an item, and takes the place of the failure."""

    def refuse(what: object) -> str:
        raise ValueError(str(what))

    assert life(["a"], annotate_errors(refuse, tell)) == Seen([], "ValueError('a')")
    seen = life(["a"], annotate_errors(shout, refuse), error=FAILURE)
    assert seen == Seen(["A"], "ValueError('gone')")


@pytest.mark.rows("S6")
@pytest.mark.parametrize("signal", [asyncio.CancelledError, GeneratorExit])
async def test_a_cancellation_raised_by_the_source_is_a_failure(
    signal: type[BaseException],
) -> None:
    """Where nobody cancelled the consumer it becomes an item, with the cancellation as its cause."""
    failures: list[Exception] = []

    def keep(error: Exception) -> str:
        failures.append(error)
        return "E"

    stream = fuse(Engine(["a"], error=signal())(), [annotate_errors(shout, keep)])
    assert await collect(stream) == Seen(["A", "E"], "completed")
    assert type(failures[0].__cause__) is signal


@pytest.mark.rows("P6a", "S6")
async def test_the_error_item_completes_the_stream() -> None:
    """When the error item is handed out everything is over: a consumer may stop there."""
    engine = Engine(["a"], error=FAILURE)
    stream = observed(
        engine(),
        [annotate_errors(shout, tell), spy(engine.journal)],
        on_end=lambda dropped: engine.journal.append(f"end {dropped}"),
    )
    assert [await anext(stream), await anext(stream)] == ["A", "E: gone"]
    assert engine.journal == ["pull", "A", "closed", "E: gone", "|", "end False"]
