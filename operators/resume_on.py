"""Go on with another stream when the one so far is lost."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any, cast

from operators._core.failures import drop_top_frame
from operators._core.checked import checked
from operators._core.fusion import FusedRun
from operators._core.operator import operator
from operators._core.stage import last
from operators._opened import Opened
from operators._progress import Lost, Progress, ResumePoint

__all__ = ("resume_on",)


def _never() -> bool:
    return False


def _check(
    errors: object,
    reopen: object,
    *,
    limit: int = 1,
    incomplete: object = None,
    amend: object = None,
    is_stopped: object = _never,
) -> None:
    is_tuple = isinstance(errors, tuple)
    for entry in cast("tuple[object, ...]", errors) if is_tuple else (errors,):
        is_class = isinstance(entry, type)
        if not (issubclass(entry, Exception) if is_class else callable(entry) and not is_tuple):
            raise TypeError(
                f"resume_on: errors: expected classes of exceptions or a function, got {entry!r}"
            )
    given = cast("object", limit)
    if type(given) is not int or given < 0:
        raise ValueError(f"resume_on: limit: expected 0 resumptions or more, got {given!r}")
    functions = {"reopen": reopen, "is_stopped": is_stopped}
    optional = {"incomplete": incomplete, "amend": amend}
    functions |= {name: value for name, value in optional.items() if value is not None}
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(f"resume_on: {name}: expected a function, got {function!r}")


@checked(_check)
@operator
async def resume_on(
    source: FusedRun[Any],
    errors: Lost,
    reopen: Callable[[ResumePoint], Opened],
    *,
    limit: int = 1,
    incomplete: Callable[[], Exception] | None = None,
    amend: Callable[[Any, ResumePoint], Any] | None = None,
    is_stopped: Callable[[], bool] = _never,
) -> AsyncGenerator[Any]:
    """
    Go on with another stream when the one so far fails as a lost worker's does.

    What was handed out stays; the new stream has to go on from there, so *reopen* is told how far
    the request has come. Its items follow, as if nothing had happened::

        source  -a-b#
        next    ------c-T|
        result  -a-b--c-T|

    The consumer's pull waits for *reopen*, and pulls the new stream itself (row S4). For engines
    behind an adapter there is ``rx_backend.failover.resume_on_engine``.

    Args:
        errors: Which errors it goes on after: classes of exceptions, or a function that says.
        reopen: Gives the stream to go on with: an asynchronous iterator or an observable, or
            something to await for it. Raises `NotResumable` to refuse. Where it fails itself with
            one of *errors*, that counts as a resumption, and it is asked again.
        limit: How often one stream is resumed, 0 or more.
        incomplete: Makes the error that an end without a terminal stands for. By default, and where
            it is none of *errors*, such an end is an end.
        amend: Corrects each item of the streams that it went on with, where they can't know what
            came before them.
        is_stopped: Whether the request was told to stop: then nothing is resumed.

    Raises:
        ValueError, TypeError: An argument is something else; when the operator is made.

    Errors: other errors, and those after a terminal or a stop, pass unchanged. An error that can't
        be resumed from goes on too; a note and a cause of class `NotResumable` say why. It can't be
        where items came that have no tokens to go on from (text alone), or that belong to several
        choices.
    On dispose: the stream that is live is closed.

    >>> import asyncio
    >>> from operators import fuse
    >>> from rx_backend import Disconnected, LLMEngineOutput
    >>> async def engine(prompt):
    ...     yield LLMEngineOutput.token(prompt[-1] + 1)
    ...     if len(prompt) < 3:
    ...         raise Disconnected("the worker is gone")
    ...     yield LLMEngineOutput.stop()
    >>> async def main():
    ...     again = resume_on(Disconnected, lambda point: engine([1, 2, *point.token_ids]))
    ...     async for chunk in fuse(engine([1, 2]), [again]):
    ...         print(chunk.token_ids, chunk.finish_reason)
    >>> asyncio.run(main())
    [3] None
    [4] None
    [] stop
    """
    progress = Progress(errors, reopen, limit, is_stopped)
    run = source
    point: ResumePoint | None = None
    failure: Exception | None = None
    try:
        while True:
            try:
                item = await anext(run)
            except StopAsyncIteration:
                if incomplete is None:
                    return
                failure = incomplete()
                if not progress.is_lost(failure):
                    return
            except Exception as error:
                if not progress.is_lost(error):
                    raise
                drop_top_frame(error)
                failure = error
            else:
                if point is not None and amend is not None:
                    item = amend(item, point)
                progress.add(item)
                is_last = run.ended and (progress.is_complete or incomplete is None)
                yield last(item) if is_last else item
                continue
            run, point = await progress.resume(failure)
            failure = None
    finally:
        # This frame is in the failure's traceback: holding it here would be a cycle.
        del failure
        if run is not source:
            await run.aclose()
