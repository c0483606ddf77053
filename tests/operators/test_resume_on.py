"""Going on with another stream when the one so far is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import reactivex
from hypothesis import given
from hypothesis import strategies as st

from operators import NotResumable, ResumePoint, fuse, resume_on, until_terminal
from operators.authoring import FusedRun
from rx_backend.testing import run_virtual
from tests.operators._help import Chunk, Engine, collect, handshake, terminal, token, virtual

END = terminal()


class Lost(Exception):
    pass


class LostToo(Lost):
    pass


@dataclass
class Spare:
    """Gives one stream after the other, and notes from where each has to go on."""

    parts: Sequence[Any]

    def __post_init__(self) -> None:
        self.points: list[ResumePoint] = []

    def __call__(self, point: ResumePoint) -> Any:
        self.points.append(point)
        part = self.parts[len(self.points) - 1]
        if isinstance(part, Exception):
            raise part
        return part()

    @property
    def told(self) -> list[list[int]]:
        return [list(point.token_ids) for point in self.points]


@pytest.mark.rows("S1", "S4")
@virtual
async def test_it_goes_on_where_it_was() -> None:
    """Nothing comes twice; each stream is told of all tokens, pulled on demand, and closed once."""
    first = Engine([handshake(), token(1), token(2, 3)], error=Lost("one"))
    second = Engine([token(4)], error=LostToo("two"))
    third = Engine([handshake(), token(5), END])
    spare = Spare([second, third])
    stream = fuse(first(), [resume_on(Lost, spare, limit=2)])
    items: list[Chunk] = []
    async for item in stream:
        items.append(item)
        assert first.pulls + second.pulls + third.pulls == len(items)
    assert items == [
        *(handshake(), token(1), token(2, 3), token(4), handshake(), token(5)),
        END,
    ]
    assert spare.told == [[1, 2, 3], [1, 2, 3, 4]]
    assert [point.attempt for point in spare.points] == [1, 2]
    assert [str(point.error) for point in spare.points] == ["one", "two"]
    assert [point.last_item for point in spare.points] == [token(2, 3), token(4)]
    assert (first.closed, second.closed, third.closed) == (1, 1, 1)


@virtual
async def test_the_link_is_that_of_the_stream_that_was_lost() -> None:
    """One that an earlier stream had is not taken for it."""
    linked = Chunk([1], worker_trace_link="link")
    spare = Spare([Engine([token(2)], error=Lost()), Engine([END])])
    first = Engine([linked, token(7)], error=Lost())
    await collect(fuse(first(), [resume_on(Lost, spare, limit=2)]))
    assert [point.link for point in spare.points] == ["link", None]


def is_lost(error: Exception) -> bool:
    return isinstance(error, Lost)


@pytest.mark.parametrize("errors", [Lost, (ValueError, Lost), is_lost])
@virtual
async def test_which_errors_mean_lost(errors: Any) -> None:
    """Classes, or a function; any other error passes as it is."""
    spare = Spare([Engine([END])])
    assert (await collect(fuse(Engine(error=LostToo())(), [resume_on(errors, spare)]))).items == [
        END
    ]
    other = LookupError("other")
    seen = await collect(fuse(Engine(error=other)(), [resume_on(errors, spare)]))
    assert seen.error is other
    assert (other.__cause__, getattr(other, "__notes__", [])) == (None, [])
    assert len(spare.points) == 1


@dataclass
class Telling(Chunk):
    """A chunk with more fields."""

    text: str | None = None
    index: int | None = None


@pytest.mark.parametrize(
    ("first", "parts", "why"),
    [
        pytest.param([token(1)], [Engine()], "resumed once already", id="limit"),
        pytest.param([token(1)], [NotResumable("no engine")], "no engine", id="refused"),
        pytest.param([token(1)], [ValueError("set-up")], "failed: set-up", id="set-up-fails"),
        pytest.param([token(1)], [LostToo("set-up")], "failed: set-up", id="set-up-lost"),
        pytest.param([token(1)], [lambda: 7], "expected an asynchronous iterator", id="no-stream"),
        pytest.param([Telling(text="a")], [], "no tokens to go on from", id="text"),
        pytest.param([Telling([1], index=1)], [], "several choices", id="choices"),
        pytest.param([{"token_ids": [1], "index": 1}], [], "several choices", id="mapping"),
        pytest.param([Chunk([-1])], [], "token_ids are none", id="bad-tokens"),
    ],
)
@virtual
async def test_why_not(first: list[Any], parts: list[Any], why: str) -> None:
    """The error goes on, and says why in a note and in a typed cause; what it had stays a cause."""
    error = Lost("last")
    error.__cause__ = origin = OSError("socket")
    is_second_lost = bool(parts) and isinstance(parts[0], Engine)
    if is_second_lost:
        parts[0].error = error
    source = Engine(first, error=Lost("one") if is_second_lost else error)
    spare = Spare(parts)
    seen = await collect(fuse(source(), [resume_on(Lost, spare)]))
    assert seen.items == first
    assert seen.error is error
    (note,) = error.__notes__
    assert note.startswith("not resumed: ")
    assert why in note
    assert isinstance(error.__cause__, NotResumable)
    end: BaseException | None = error
    while end is not None and end is not origin:
        end = end.__cause__
    assert end is origin
    assert len(spare.points) == len(parts)


@virtual
async def test_a_next_stream_that_cannot_be_opened_counts() -> None:
    """It is asked for again while the limit allows."""
    spare = Spare([Lost("one"), Lost("two"), Engine([token(2), END])])
    first = Engine([token(1)], error=Lost())
    seen = await collect(fuse(first(), [resume_on(Lost, spare, limit=3)]))
    assert seen.items == [token(1), token(2), END]
    assert [point.attempt for point in spare.points] == [1, 2, 3]


@pytest.mark.parametrize("errors", [Lost, ValueError])
@virtual
async def test_an_end_without_a_terminal(errors: type[Exception]) -> None:
    """It stands for an error only where one is made for it, and that means lost."""
    spare = Spare([Engine([token(2), END])])
    first = Engine([token(1)])
    resuming = resume_on(errors, spare, incomplete=lambda: Lost("incomplete"))
    seen = await collect(fuse(first(), [resuming]))
    resumed = errors is Lost
    assert seen.items == ([token(1), token(2), END] if resumed else [token(1)])
    assert seen.end == "completed"
    assert [str(point.error) for point in spare.points] == ["incomplete"] * resumed
    plain = await collect(fuse(Engine([token(1)])(), [resume_on(errors, spare)]))
    assert (plain.items, plain.end) == ([token(1)], "completed")


@virtual
async def test_an_end_without_a_terminal_that_cannot_be_resumed() -> None:
    """The error that it stands for goes on."""
    resuming = resume_on(Lost, Spare([]), limit=0, incomplete=lambda: Lost("incomplete"))
    seen = await collect(fuse(Engine([token(1)])(), [resuming]))
    assert (seen.items, seen.end) == ([token(1)], "Lost('incomplete')")


@virtual
async def test_after_the_terminal_nothing_is_resumed() -> None:
    """An error behind it passes as it is."""
    error = Lost()
    seen = await collect(fuse(Engine([END], error=error)(), [resume_on(Lost, Spare([]))]))
    assert (seen.items, seen.error) == ([END], error)
    assert error.__cause__ is None


@pytest.mark.parametrize("error", [Lost("gone"), None])
@virtual
async def test_after_a_stop_nothing_is_resumed(error: Exception | None) -> None:
    """The stream ends as it would without the operator."""
    resuming = resume_on(
        Lost, Spare([]), incomplete=lambda: Lost("incomplete"), is_stopped=lambda: True
    )
    seen = await collect(fuse(Engine([token(1)], error=error)(), [resuming]))
    assert (seen.items, seen.error) == ([token(1)], error)


@virtual
async def test_later_parts_are_amended() -> None:
    """The items of the streams that it went on with are, each with the point of its stream."""

    def amend(item: Chunk, point: ResumePoint) -> Chunk:
        return Chunk([*item.token_ids, point.attempt * 100], item.finish_reason)

    spare = Spare([Engine([token(2)], error=Lost()), Engine([token(3), END])])
    first = Engine([token(1)], error=Lost())
    seen = await collect(fuse(first(), [resume_on(Lost, spare, limit=2, amend=amend)]))
    assert [item.token_ids for item in seen.items] == [[1], [2, 100], [3, 200], [200]]
    assert spare.told == [[1], [1, 2, 100]]


@virtual
async def test_what_a_next_stream_may_be() -> None:
    """An iterator, a run, an observable, or something to await for one."""

    async def run() -> FusedRun[Any]:
        return fuse(Engine([END])(), [])

    for part in (Engine([END]), run, lambda: reactivex.of(END)):
        resuming = resume_on(Lost, Spare([part]))
        assert (await collect(fuse(Engine(error=Lost())(), [resuming]))).items == [END]


@pytest.mark.rows("P6a")
@virtual
async def test_the_last_item_is_known_to_be_the_last() -> None:
    """With the terminal everything is released, whichever stream it is of."""
    second = Engine([END])
    resuming = resume_on(Lost, Spare([lambda: fuse(second(), [until_terminal()])]))
    stream = fuse(Engine([token(1)], error=Lost())(), [resuming])
    assert [await anext(stream), await anext(stream)] == [token(1), END]
    assert (second.closed, stream.ended) == (1, True)
    await stream.aclose()


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        ((7, Spare([])), {}, "resume_on: errors: expected classes of exceptions or a function"),
        (((Lost, int), Spare([])), {}, "resume_on: errors: .* got <class 'int'>"),
        ((Lost, None), {}, "resume_on: reopen: expected a function, got None"),
        ((Lost, Spare([])), {"limit": -1}, "resume_on: limit: expected 0 resumptions or more"),
        ((Lost, Spare([])), {"amend": 7}, "resume_on: amend: expected a function, got 7"),
    ],
)
def test_bad_arguments(arguments: tuple[Any, ...], options: dict[str, Any], error: str) -> None:
    """They are named when the operator is made."""
    with pytest.raises((TypeError, ValueError), match=error):
        resume_on(*arguments, **options)


# The same by a model: parts are told how many chunks of how many tokens they give until they are
# lost; the last one gives what is left.


class Parts:
    """Streams of one request, whose tokens count up from 0; each is lost but the last."""

    def __init__(self, sizes: Sequence[Sequence[int]], setup_s: float) -> None:
        self.sizes = sizes
        self.setup_s = setup_s
        self.opened = self.closed = 0

    async def open(self, point: ResumePoint) -> AsyncGenerator[Chunk]:
        await asyncio.sleep(self.setup_s)
        assert list(point.token_ids) == list(range(len(point.token_ids)))
        return self.stream(len(point.token_ids))

    async def stream(self, begin: int) -> AsyncGenerator[Chunk]:
        sizes = self.sizes[self.opened]
        self.opened += 1
        try:
            for size in sizes:
                await asyncio.sleep(1)
                yield token(*range(begin, begin + size))
                begin += size
            await asyncio.sleep(1)
            if self.opened < len(self.sizes):
                raise Lost
            yield END
        finally:
            self.closed += 1
            await asyncio.sleep(0.25)


@pytest.mark.rows("S1", "S7")
@given(
    sizes=st.lists(st.lists(st.integers(0, 2), max_size=3), min_size=1, max_size=4),
    setup_s=st.sampled_from([0, 2]),
    drop_s=st.integers(0, 20) | st.just(1000),
    by_cancel=st.booleans(),
)
def test_any_loss(sizes: list[list[int]], setup_s: float, drop_s: int, by_cancel: bool) -> None:
    """Tokens come once and in order up to the drop, and every stream that began is closed."""
    parts = Parts(sizes, setup_s)
    items: list[Chunk] = []

    async def consume(take: Callable[[], Any]) -> None:
        async for item in take():
            items.append(item)  # noqa: PERF401 - those before a drop too

    async def run() -> None:
        stream = fuse(parts.stream(0), [resume_on(Lost, parts.open, limit=len(sizes))])
        task = asyncio.create_task(consume(lambda: stream))
        await asyncio.sleep(drop_s + 0.6)
        if by_cancel:
            task.cancel()
        else:
            stream.close()
        await asyncio.wait([task])
        await stream.aclose()
        assert len(asyncio.all_tasks()) == 1

    run_virtual(run())
    tokens = [token_id for item in items for token_id in item.token_ids]
    assert tokens == list(range(len(tokens)))
    # When each item is due: a second each, a second and a quarter for a loss, and the set-up.
    time, due = 0.0, list[float]()
    for number, part in enumerate(sizes):
        due += [time + 1 + place for place in range(len(part))]
        time += len(part) + 1
        if number == len(sizes) - 1:
            due.append(time)
        time += 0.25 + setup_s
    assert len(items) == sum(moment < drop_s + 0.6 for moment in due)
    assert parts.opened == parts.closed
