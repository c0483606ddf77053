"""`operators._core.mailbox`: items that wait for one consumer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators._core.mailbox import Mailbox
from rx_backend.testing import run_virtual
from tests.operators._help import settle


@dataclass
class Model:
    """What a mailbox is, said simply."""

    items: list[int] = field(default_factory=list[int])
    error: BaseException | None = None
    is_closed: bool = False

    def apply(self, step: str, number: int) -> None:
        if step == "put" and not self.is_closed:
            self.items.append(number)
        elif step in {"end", "fail"} and not self.is_closed:
            self.is_closed = True
            self.error = LookupError(number) if step == "fail" else None
        elif step == "close":
            self.is_closed, self.error = True, None
            self.items.clear()
        elif step == "take":
            del self.items[: number % (len(self.items) + 1)]

    def get(self) -> str:
        """Return what a consumer that asks gets: an item, what it ends with, or a wait."""
        if self.items:
            return repr(self.items.pop(0))
        if not self.is_closed:
            return "waits"
        error, self.error = self.error, None
        return "over" if error is None else repr(error)


def apply(box: Mailbox[int], step: str, number: int) -> None:
    if step == "put":
        box.put(number)
    elif step == "end":
        box.end()
    elif step == "fail":
        box.end(LookupError(number))
    elif step == "close":
        box.close()
    elif step == "take":
        for _ in range(number % (len(box) + 1)):
            box.take()
    else:
        box.wake()


async def got(box: Mailbox[int]) -> str:
    try:
        return repr(await asyncio.wait_for(box.get(), 1.0))
    except StopAsyncIteration:
        return "over"
    except LookupError as error:
        return repr(error)
    except TimeoutError:
        return "waits"


STEPS = st.sampled_from(["put", "put", "put", "get", "get", "end", "fail", "close", "take", "wake"])


@given(st.lists(st.tuples(STEPS, st.integers(0, 9)), max_size=20))
def test_any_sequence_of_events(history: list[tuple[str, int]]) -> None:
    """
    Items come in order, once; the first end counts, after what waits.

    An error is raised once.
    """

    async def run() -> None:
        box, model = Mailbox[int](), Model()
        for step, number in history:
            if step == "get":
                assert await got(box) == model.get()
            else:
                apply(box, step, number)
                model.apply(step, number)
            assert [*box] == model.items
            assert len(box) == len(model.items)
            assert box.is_closed == model.is_closed
            assert box.ended == (model.is_closed and not model.items and model.error is None)
            assert not box.is_awaited

    run_virtual(run())


@given(st.lists(st.tuples(STEPS, st.integers(0, 9)), min_size=1, max_size=8))
def test_any_sequence_of_events_while_the_consumer_waits(history: list[tuple[str, int]]) -> None:
    """It gets what it would get if it had come later; being woken for nothing it waits on."""

    async def run() -> None:
        box, model = Mailbox[int](), Model()
        waiting = asyncio.create_task(got(box))
        await settle()
        assert box.is_awaited
        for step, number in history:
            apply(box, step, number)
            model.apply(step, number)
            await settle()
            if waiting.done():
                assert await waiting == model.get()
                return
            assert box.is_awaited
        assert model.get() == "waits"
        assert await waiting == "waits"

    run_virtual(run())


@pytest.mark.rows("S1")
async def test_a_cancelled_get_loses_nothing() -> None:
    """What comes while nobody waits any more waits for the next one who asks."""
    box = Mailbox[int]()
    waiting = asyncio.create_task(box.get())
    await settle()
    waiting.cancel()
    box.put(1)
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert not box.is_awaited
    assert (await box.get(), [*box]) == (1, [])
