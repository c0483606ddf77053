"""Chains with asynchronous steps between them: what is said to one reaches the next by a step."""

from __future__ import annotations

import types
from collections.abc import Generator, Sequence
from typing import Any, TypeAlias, cast

from operators._core.chain import READY, Chain, Starter, blame, leave_frame
from operators._core.release import Release
from operators._core.stage import Condition, Emission, Step

__all__ = ("LinkedChains", "Links", "link_up")


def link_up(starters: Sequence[Starter]) -> Links:
    """The stages of a run: one chain, or several with an asynchronous step between each two."""
    rest = iter(starters)
    chain = Chain(rest)
    if chain.link is None:
        return chain
    chains = [chain]
    try:
        while chains[-1].link is not None:
            chains.append(Chain(rest))
    except BaseException as error:
        for begun in chains:
            begun.abandon(error)
        raise
    return LinkedChains(chains)


class LinkedChains:
    """
    Chains with an asynchronous step behind each but the last, as one to the loop around them.

    A stage is known here by its place among all stages, steps counted in. An item on its straight
    way passes in the loop itself; all else waits in a chain's ``out`` until :meth:`settle` takes it
    on, what is furthest along first, so the order is kept.
    """

    __slots__ = ("_chains", "_places", "item")

    def __init__(self, chains: Sequence[Chain]) -> None:
        self._chains = chains
        self.item: Any = None
        # Of each place its chain, and its place in there; None for the step behind the chain.
        self._places: list[tuple[int, int | None]] = []
        for number, chain in enumerate(chains):
            self._places += [(number, place) for place in range(len(chain.steps))]
            if chain.link is not None:
                self._places.append((number, None))

    @property
    def ended(self) -> bool:
        """Nothing comes out any more but what waits in ``out``."""
        return self._chains[-1].ended

    @property
    def error(self) -> BaseException | None:
        """What the stream failed with, once it has ended."""
        return self._chains[-1].error

    @error.setter
    def error(self, error: BaseException | None) -> None:
        self._chains[-1].error = error

    @property
    def out(self) -> list[Any]:
        """What is about to be handed out."""
        return self._chains[-1].out

    @property
    def reshaped(self) -> bool:
        """The items that visit some stage are others since the flag was last cleared."""
        return any(chain.reshaped for chain in self._chains)

    @reshaped.setter
    def reshaped(self, reshaped: bool) -> None:
        for chain in self._chains:
            chain.reshaped = reshaped

    @property
    def steps(self) -> list[Step | None]:
        """Of each place its step."""
        steps: list[Step | None] = []
        for chain in self._chains:
            steps += chain.steps
            if chain.link is not None:
                steps.append(chain.link.direct)
        return steps

    @property
    def conditions(self) -> list[Condition | None]:
        """Of each place which items visit it, and whether it is awaited."""
        conditions: list[Condition | None] = []
        for chain in self._chains:
            conditions += chain.conditions
            if chain.link is not None:
                conditions.append(chain.link.condition)
        return conditions

    def push(self, item: Any) -> None:
        """Send an item in."""
        self._chains[0].push(item)

    def push_last(self, item: Any) -> None:
        """Send the source's last item in."""
        self._chains[0].push_last(item)

    def complete(self) -> None:
        """The source is through."""
        self._chains[0].complete()

    def fail(self, error: BaseException) -> None:
        """The source failed."""
        self._chains[0].fail(error)

    def leave(self, place: int) -> None:
        """No more items visit the stage at *place*; the loop knows already."""
        number, here = self._places[place]
        if here is not None:
            self._chains[number].leave(here)

    def emitted(self, place: int, emission: Emission) -> None:
        """Take an emission from *place*, for an item on its straight way."""
        number, here = self._places[place]
        if here is None:
            self._hand_on(number, emission)
        else:
            self._chains[number].emitted(here, emission)

    def interrupted(self, error: BaseException, place: int) -> None:
        """Take an exception that came out of a step, for an item on its straight way."""
        number, here = self._places[place]
        if here is None:
            self._step_failed(number, error)
        else:
            self._chains[number].interrupted(error, here)

    def settle(self, release: Release) -> Generator[Any, Any, None]:
        """
        Take everything that waits on, until nothing does; yields as the fused loop does.

        Args:
            release: Closes the source as soon as the first chain is through, and is called when
                the last one is.
        """
        last = self._chains[-1]
        while True:
            self._close_before_the_end()
            if self._chains[0].ended:
                release.close_source()
            if last.ended:
                release()
            if last.out:
                self.item = last.out.pop(0)
                yield READY
            elif last.ended or not (yield from self._step()):
                return

    def _step(self) -> Generator[Any, Any, bool]:
        # Only a generator that is a coroutine by its flags may go on with coroutines.
        return cast("Generator[Any, Any, bool]", self._advance())

    @types.coroutine
    def _advance(self) -> Generator[Any, Any, bool]:
        """Take what is furthest along one step further; False if nothing waits."""
        for number in range(len(self._chains) - 2, -1, -1):
            chain, following = self._chains[number], self._chains[number + 1]
            if chain.out:
                assert chain.link is not None  # noqa: S101 - of all chains but the last
                item = chain.out.pop(0)
                try:
                    result = yield from cast("Generator[Any, Any, Any]", chain.link.step(item))
                except GeneratorExit:
                    raise
                except BaseException as error:
                    leave_frame(error)
                    self._step_failed(number, error)
                else:
                    self._hand_on(number, result)
                return True
            if chain.ended and not following.ended:
                if chain.error is None:
                    following.complete()
                else:
                    following.fail(chain.error)
                return True
        return False

    def _hand_on(self, number: int, result: Any) -> None:
        """The step behind a chain gave its result for an item."""
        chain, following = self._chains[number], self._chains[number + 1]
        items: tuple[Any, ...] = (result,)
        error: Exception | None = None
        if type(result) is Emission:
            items, error = result.items, result.error
            if result.ends:
                # What the chain was yet to give, its failure too, comes too late.
                chain.drop()
                chain.error = None
        is_last = chain.ended and not chain.out and chain.error is None
        for item in items[:-1] if is_last and error is None else items:
            if not following.ended:
                following.push(item)
        if error is not None:
            following.fail(error)
        elif is_last and items and not following.ended:
            following.push_last(items[-1])
        elif is_last:
            following.complete()

    def _step_failed(self, number: int, error: BaseException) -> None:
        blame(error, self._chains[number].link_name)
        for chain in self._chains[: number + 1]:
            chain.drop()
        self._chains[number + 1].fail(error)

    def _close_before_the_end(self) -> None:
        """A chain that has ended wants nothing more of those before it."""
        last = max((number for number, chain in enumerate(self._chains) if chain.ended), default=0)
        for chain in self._chains[:last]:
            chain.drop()

    def close(self) -> None:
        """Drop: every stage that still lives is closed. Idempotent."""
        for chain in self._chains:
            chain.close()

    def abandon(self, error: BaseException) -> None:
        """The set-up of a later stage raised *error*: every stage is told."""
        for chain in self._chains:
            chain.abandon(error)

    def drop(self) -> None:
        """Close, and forget what has not been handed out."""
        for chain in self._chains:
            chain.drop()


Links: TypeAlias = Chain | LinkedChains
