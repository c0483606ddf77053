"""Operators run for a picture: what is noted, and when."""

from __future__ import annotations

import asyncio
from typing import Any

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

TOKENS = {str(n): LLMEngineOutput.token(n) for n in (1, 2, 3)}
CHUNKS = {"h": LLMEngineOutput(), "T": LLMEngineOutput.stop(), **TOKENS}


async def shout(text: str) -> str:
    await asyncio.sleep(1)
    return text.upper()


def inverse(text: str) -> int:
    return 1 // int(text)


def played(life: str, line: str, operator: AnyOperator, **options: Any) -> Any:
    return getattr(MarbleRun(line, **options), life)(operator)


def test_pipe_and_fuse_show_the_same() -> None:
    """A list that answers at once makes the same picture in both of its lives."""
    run = MarbleRun("-1-h-2-(T|)", values=CHUNKS)
    seen = run.effect("first")
    has_tokens: AnyOperator = ops.filter(lambda chunk: bool(chunk.token_ids))
    chain: list[AnyOperator] = [until_terminal(), first_token(seen), has_tokens]
    fused = run.fuse(*chain)
    assert fused.rows == run.pipe(*chain).rows
    assert repr(fused) == (
        "source  -1-h-2-(T!)\nresult  -1---2-|\nfirst   -1\n(h = empty, T = stop)"
    )


@pytest.mark.parametrize("item", [None, False, 0, "", ()], ids=repr)
def test_none_is_an_item(item: object) -> None:
    """It is shown by its text; only a call without an item, which is no item, is a ``!``."""
    picture = MarbleRun("-a-b|").pipe(ops.map(lambda _: item))
    assert repr(picture).splitlines()[:2] == ["source  -a-b|", "result  -A-A|"]


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
    abort, observed = run.effect("abort"), run.effect("observed")
    stop = run.input("stop", "--s-")
    picture = run.pipe(deferred_abort(abort, stop=stop), tap(observed))
    assert [row.kind for row in picture.rows] == ["source", "input", "result", "effect", "effect"]
    assert repr(picture) == (
        "source    -h---1-|\nstop      --s-----\nresult    -h---1-|\nabort     -----!\n"
        "observed  -h---1\n(h = empty)"
    )
    errors: list[Exception] = []
    stop.subscribe(on_error=errors.append)
    assert [str(error) for error in errors] == ["the input 'stop' plays while its MarbleRun runs"]


@pytest.mark.parametrize("life", ["pipe", "fuse"])
def test_rows_end_where_they_are_disposed_of(life: str) -> None:
    """A drop closes the source; a run that ends leaves no mark; an error is where it comes."""
    upper = ops.map(str.upper)
    dropped = getattr(MarbleRun("-a-b-c-|"), life)(upper, drop="----!")
    assert repr(dropped) == "source  -a-b!\nresult  -A-B!"
    assert repr(played(life, "-a-b-", upper)) == "source  -a-b\nresult  -A-B"
    failure = ConnectionError("gone")
    passed = played(life, "-a-#", upper, error=failure)
    assert repr(passed) == "source  -a-#\nresult  -A-#"
    assert passed.rows[-1].events[-1].value is failure
    raised = played(life, "-1-0-2-|", ops.map(inverse))
    assert [event.kind for event in raised.rows[0].events] == ["next", "next", "drop"]
    error = raised.rows[-1].events[-1].value
    assert isinstance(error, ZeroDivisionError)
    assert repr(raised).endswith(f"\nresult  -A-#\n(A = 1, # = {error!r})")


def test_a_run_shows_its_line_and_refuses_a_negative_delay() -> None:
    """Before it is drawn it says what it plays."""
    run = MarbleRun("-a-|")
    assert repr(run) == "MarbleRun('-a-|')"
    with pytest.raises(ValueError, match=r"consumer_delay: .* at least 0 frames, got -1"):
        run.fuse(consumer_delay=-1)


@pytest.mark.rows("S4")
def test_a_slow_consumer_slows_its_source() -> None:
    """The source works only while an item is requested; `coalesce` requests ahead."""
    slow = MarbleRun("-a-b-|").fuse(consumer_delay=3)
    assert repr(slow) == "source  -a----b----|\nresult  -a----b----|"
    ahead = MarbleRun("-1-2-3-(T|)", values=CHUNKS).fuse(coalesce(), consumer_delay=5)
    frames = [[event.frame for event in row.events] for row in ahead.rows]
    assert frames == [[1, 3, 5, 7, 7], [1, 6, 11, 16]]


def test_rows_are_distinguishable_in_text() -> None:
    """Without operators the source stands alone; an item without a letter is assigned one."""
    assert repr(MarbleRun("-a-|").pipe()) == "source  -a-|"
    paired = MarbleRun("-A-b-|").pipe(ops.pairwise())
    assert repr(paired) == "source  -A-b-|\nresult  ---B-|\n(B = A b)"


def test_bad_input_is_rejected() -> None:
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
