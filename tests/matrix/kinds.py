"""The two registries: kinds of engine, kinds of consumer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from tests.matrix.call import Call
    from tests.matrix.request import Request

__all__ = ("CONSUMERS", "ENGINES", "Consumer", "Engine", "asking", "consumer", "engine")

ANY_ERROR = "any"


@dataclass(frozen=True)
class Engine:
    """
    A kind of engine.

    Attributes:
        generate: What ``LLMEngine.generate`` gives.
        abort: What ``LLMEngine.abort`` does, beside being counted.
        ends: How an answer that is read to its end may end: "terminal", or "error" with a kind.
        answers: How many answers there are.
        fails_setup: ``generate`` of the adapter must raise.
        raises: Errors beside ``Exception`` that may reach the consumer.
        cancels_consumer: The engine itself cancels the task that pulls it.
        drops_itself: The engine closes its own stream.
        wants_stream: The engine is given its own stream.
        has_scope_in_pull: A pull waits in a scope of anyio, which only its own task can leave.
        hides_cancellation: A task group may fail in the iteration of the consumer's cancellation,
            and before Python 3.13 it can't be distinguished from the group's own.
        holds_task: Something that outlives the answer refers to the task that pulls, and so to all
            that a cancelled task's traceback refers to: a timer, or what anyio keeps of a scope.
        knows_task: The answer itself refers to the task that pulls, for as long as it runs.
        is_kept: A library keeps something of each answer forever, so that many of them grow.
        holds_context: A thread of the engine's holds the context, so that what the context refers
            to is in use.
        counts: Its tokens can be counted, so that their order is checked (row S1).
    """

    name: str
    generate: Callable[[Call], Any]
    abort: Callable[[Call], Awaitable[None]] | None = None
    ends: tuple[str, ...] = ("terminal",)
    answers: int = 1
    fails_setup: bool = False
    raises: tuple[type[BaseException], ...] = ()
    cancels_consumer: bool = False
    drops_itself: bool = False
    wants_stream: bool = False
    holds_context: bool = False
    has_scope_in_pull: bool = False
    hides_cancellation: bool = False
    holds_task: bool = False
    knows_task: bool = False
    is_kept: bool = False
    counts: bool = True


@dataclass(frozen=True)
class Consumer:
    """
    A kind of consumer.

    Attributes:
        consume: What it does; it asks for the stream itself.
        is_exact: Its pipeline ends no answer by itself and signals nothing.
    """

    name: str
    consume: Callable[[Request], Awaitable[None]]
    is_exact: bool = True


ENGINES: dict[str, Engine] = {}
CONSUMERS: dict[str, Consumer] = {}


def engine(**options: Any) -> Callable[[Callable[[Call], Any]], Callable[[Call], Any]]:
    """Register a function as a kind of engine."""

    def register(generate: Callable[[Call], Any]) -> Callable[[Call], Any]:
        name: str = options.pop("name", generate.__name__)
        assert name not in ENGINES, name
        ENGINES[name] = Engine(name, generate, **options)
        return generate

    return register


def asking(
    *, is_exact: bool = True, name: str = ""
) -> Callable[[Callable[[Request], Awaitable[None]]], Callable[[Request], Awaitable[None]]]:
    """Register a function that asks for its stream as a kind of consumer."""

    def register(consume: Callable[[Request], Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        own_name: str = name or consume.__name__
        assert own_name not in CONSUMERS, own_name
        CONSUMERS[own_name] = Consumer(own_name, consume, is_exact)
        return consume

    return register


Consume: TypeAlias = "Callable[[Request, Any], Awaitable[None]]"


def consumer(*, is_exact: bool = True, name: str = "") -> Callable[[Consume], Consume]:
    """Register a function of a request and its stream as a kind of consumer."""

    def register(consume: Consume) -> Consume:
        @asking(is_exact=is_exact, name=name or consume.__name__)
        async def ask(request: Request) -> None:
            await consume(request, await request.open())

        return consume

    return register
