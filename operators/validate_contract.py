"""Report a stream that breaks the engine contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from operators._chunk import IS_TERMINAL
from operators._core.operator import operator
from operators._core.stage import Completed, Stage, visit_if

__all__ = ("ContractViolation", "validate_contract")


class ContractViolation(ValueError):
    """A stream broke rule E3: it has no terminal, or goes on after it."""


@operator
def validate_contract(*, error: Callable[[str], Exception] = ContractViolation) -> Stage[Any, Any]:
    """
    Fail a stream that goes on after its terminal chunk, or ends without one (rows E3, S8).

    For tests and engine development: ahead of ``until_terminal`` in a production pipeline it could
    only see a missing terminal. ``T`` is a terminal::

        source  ---a-T-b-|
        result  ---a-T-#

    and a stream without a terminal::

        source  ---a-|
        result  ---a-#

    Args:
        error: Makes the exception from a message that says what was broken.

    Errors: source errors pass unchanged; they end a stream as well as a terminal does.
    On dispose: nothing; a dropped stream breaks no rule.

    >>> import reactivex
    >>> from rx_backend import LLMEngineOutput
    >>> chunks = reactivex.of(LLMEngineOutput.stop(), LLMEngineOutput.token(7))
    >>> _ = chunks.pipe(validate_contract()).subscribe(on_error=print)
    item after the terminal: token_ids=[7], finish_reason=None
    """
    try:
        chunk = yield visit_if(IS_TERMINAL)
    except Completed:
        raise error("the stream ended without a terminal") from None
    chunk = yield visit_if("True", chunk)
    raise error(
        "item after the terminal: "
        f"token_ids={list(chunk.token_ids)}, finish_reason={chunk.finish_reason}"
    )
