"""Operators run for a picture: what is noted, and when."""

from __future__ import annotations

import asyncio

import pytest
from reactivex import operators as ops

from operators import (
    NotAnOperator,
    coalesce,
    deferred_abort,
    first_token,
    map_async,
    tap,
    until_terminal,
)
from operators.authoring import AnyOperator
from rx_backend import LLMEngineOutput
from rx_backend.pictures import MarbleRun
from rx_backend.testing import MarbleError

CHUNKS = {
    "h": LLMEngineOutput(),
    "1": LLMEngineOutput.token(1),
    "2": LLMEngineOutput.token(2),
    "3": LLMEngineOutput.token(3),
    "T": LLMEngineOutput.stop(),
}


async def shout(text: str) -> str:
    await asyncio.sleep(1)
    return text.upper()


def has_tokens(chunk: LLMEngineOutput) -> bool:
    return bool(chunk.token_ids)


def inverse(text: str) -> int:
    return 1 // int(text)


def test_pipe_and_fuse_show_the_same() -> None:
    """A list that answers at once makes the same picture in both of its lives."""
    run = MarbleRun("-1-h-2-(T|)", values=CHUNKS)
    seen = run.effect("first")
    chain: list[AnyOperator] = [until_terminal(), first_token(seen), ops.filter(has_tokens)]
    fused = run.fuse(*chain)
    assert fused == run.pipe(*chain)
    assert repr(fused) == (
        "source  -1-h-2-(T!)\nresult  -1---2-|\nfirst   -1\n(h = empty, T = stop)"
    )


def test_a_run_needs_no_loop_of_its_own() -> None:
    """Asynchronous operators are played where a loop runs already, in virtual time."""

    async def main() -> list[str]:
        run = MarbleRun("-a--b--|")
        return [repr(run.pipe(map_async(shout))), repr(run.fuse(map_async(shout)))]

    assert asyncio.run(main()) == [
        "source  -a--b--|\nresult  --A--B-|",
        "source  -a---b---|\nresult  --A---B--|",
    ]


def test_inputs_and_effects_have_rows() -> None:
    """A stop signal stands above the result, and the abort that it leads to below."""
    run = MarbleRun("-h---1-|", values=CHUNKS)
    abort = run.effect("abort")
    picture = run.pipe(deferred_abort(abort, stop=run.input("stop", "--s-")))
    assert [(row.name, row.kind) for row in picture.rows] == [
        ("source", "source"),
        ("stop", "input"),
        ("result", "result"),
        ("abort", "effect"),
    ]
    assert repr(picture) == (
        "source  -h---1-|\nstop    --s-----\nresult  -h---1-|\nabort   -----!\n(h = empty)"
    )


def test_an_effect_shows_what_it_is_given() -> None:
    """An observer gets the items one after the other, in a row of its own."""
    run = MarbleRun("-a-b-|")
    assert "observed  -a-b" in repr(run.fuse(tap(run.effect("observed"))))


@pytest.mark.parametrize("life", ["pipe", "fuse"])
def test_a_drop_closes_the_source(life: str) -> None:
    """Both rows end where the result is dropped, and what comes later is not noted."""
    picture = getattr(MarbleRun("-a-b-c-|"), life)(ops.map(str.upper), drop="----!")
    assert repr(picture) == "source  -a-b!\nresult  -A-B!"


@pytest.mark.parametrize("life", ["pipe", "fuse"])
def test_an_open_stream_is_not_dropped_at_the_end_of_the_run(life: str) -> None:
    """What the run itself puts away is no part of the picture."""
    picture = getattr(MarbleRun("-a-b-"), life)(ops.map(str.upper))
    assert repr(picture) == "source  -a-b\nresult  -A-B"


@pytest.mark.parametrize("life", ["pipe", "fuse"])
def test_errors_are_shown_where_they_come(life: str) -> None:
    """What the source fails with goes through; what an operator raises closes the source."""
    failure = ConnectionError("gone")
    passed = getattr(MarbleRun("-a-#", error=failure), life)(ops.map(str.upper))
    assert repr(passed) == "source  -a-#\nresult  -A-#"
    assert passed.rows[-1].events[-1].value is failure
    raised = getattr(MarbleRun("-1-0-2-|"), life)(ops.map(inverse))
    assert [event.kind for event in raised.rows[0].events] == ["next", "next", "drop"]
    assert isinstance(raised.rows[-1].events[-1].value, ZeroDivisionError)


@pytest.mark.rows("S4")
def test_a_slow_consumer_slows_its_source() -> None:
    """The source works on an item only while one is requested; each takes as long as in its line."""
    assert repr(MarbleRun("-a-b-|").fuse(consumer_delay=3)) == (
        "source  -a----b----|\nresult  -a----b----|"
    )


def test_an_operator_that_pulls_ahead_is_seen_to() -> None:
    """With `coalesce` the source is asked while the consumer is busy, and chunks are merged."""
    picture = MarbleRun("-1-2-3-(T|)", values=CHUNKS).fuse(coalesce(), consumer_delay=5)
    assert [event.frame for event in picture.rows[0].events] == [1, 3, 5, 7, 7]
    assert [event.frame for event in picture.rows[-1].events] == [1, 6, 11, 16]


def test_an_input_plays_while_its_run_does() -> None:
    """Subscribed to at any other time it says so."""
    stop = MarbleRun("-a-|").input("stop", "-s")
    errors: list[Exception] = []
    stop.subscribe(on_error=errors.append)
    assert [str(error) for error in errors] == ["the input 'stop' plays while its MarbleRun runs"]


def test_without_operators_the_source_stands_alone() -> None:
    """There is nothing to compare it with."""
    assert repr(MarbleRun("-a-|").pipe()) == "source  -a-|"


def test_items_without_a_letter_get_one() -> None:
    """A letter that is not in use, told below."""
    picture = MarbleRun("-A-b-|").pipe(ops.pairwise())
    assert repr(picture) == "source  -A-b-|\nresult  ---B-|\n(B = A b)"


def test_bad_input_is_told() -> None:
    """Lines, names and operators that can't be are named, before anything runs."""
    with pytest.raises(MarbleError, match="unexpected '%'"):
        MarbleRun("-a%")
    run = MarbleRun("-a-|")
    with pytest.raises(MarbleError, match=r"'\^' makes no sense"):
        run.input("stop", "-^s")
    run.effect("abort")
    for name in ("abort", "source"):
        with pytest.raises(ValueError, match=f"new row, got '{name}'"):
            run.input(name, "--s")
    with pytest.raises(NotAnOperator, match=r"pipeline\[0\]"):
        run.pipe(3)  # type: ignore[arg-type]
    with pytest.raises(MarbleError, match="between two frames"):
        run.fuse(ops.delay(0.5))


@pytest.mark.needs("aioreactive")
def test_aioreactive_operators_are_for_fuse() -> None:
    """A pipe can't have them, and says so; a pipeline can."""
    import aioreactive as rx

    run = MarbleRun("-a-b-|")
    with pytest.raises(NotAnOperator, match=r"pipe: operators\[0\] is for fuse"):
        run.pipe(rx.map(str.upper))
    assert repr(run.fuse(rx.map(str.upper))) == "source  -a-b-|\nresult  -A-B-|"
