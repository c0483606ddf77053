"""How far a request has come over the streams that it was handed out from."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from operators._core.fusion import FusedRun
from operators._opened import Opened, opened
from operators._raw_chunk import is_terminal

__all__ = ("Lost", "NotResumable", "Progress", "ResumePoint")

Lost: TypeAlias = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool]
"""Which errors mean that a stream is lost: their classes, or a function that says."""


class NotResumable(Exception):
    """
    Why a lost stream was not resumed: a cause of the error that goes on.

    ``reopen`` raises it to refuse.
    """


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """
    How far a request has come when its stream is lost.

    Attributes:
        error: What the stream was lost by.
        attempt: Which resumption of the request this is, counted from 1.
        token_ids: All tokens that were handed out so far, those of earlier parts included.
        last_item: The last item with tokens that was handed out, or None.
        link: The last ``worker_trace_link`` that came with the stream that was lost, or None.
    """

    error: Exception
    attempt: int
    token_ids: Sequence[int]
    last_item: Any = None
    link: Any = None


class Progress:
    """
    How far one request has come.

    Attributes:
        is_complete: Its terminal was handed out.
    """

    __slots__ = (
        "_attempts",
        "_errors",
        "_is_stopped",
        "_last_item",
        "_limit",
        "_link",
        "_obstacle",
        "_reopen",
        "_token_ids",
        "is_complete",
    )

    def __init__(
        self,
        errors: Lost,
        reopen: Callable[[ResumePoint], Opened],
        limit: int,
        is_stopped: Callable[[], bool],
    ) -> None:
        self._errors = errors
        self._reopen = reopen
        self._limit = limit
        self._is_stopped = is_stopped
        self._attempts = 0
        self._token_ids = array("Q")
        self._last_item: Any = None
        self._link: object = None
        self._obstacle: str | None = None
        self.is_complete = False

    def is_lost(self, error: Exception) -> bool:
        """Whether *error* means that the stream is lost, and it matters."""
        if self.is_complete or self._is_stopped():
            return False
        return self._means_lost(error)

    def add(self, item: Any) -> None:
        """An item is about to be handed out."""
        try:
            if (
                item.finish_reason is None
                and item.worker_trace_link is None
                and len(item.token_ids) == 1
                and not item.index
            ):
                # An ordinary chunk.
                self._token_ids.append(item.token_ids[0])
                self._last_item = item
                return
        except (AttributeError, TypeError, ValueError, OverflowError):
            pass
        self._look_at(item)

    def _look_at(self, item: Any) -> None:
        token_ids = _field(item, "token_ids")
        if token_ids:
            self._last_item = item
            try:
                self._token_ids.extend(cast("Sequence[int]", token_ids))
            except (TypeError, ValueError, OverflowError):
                self._obstacle = "items came whose token_ids are none"
        elif _field(item, "text") or _field(item, "content_parts"):
            self._obstacle = "items came that have no tokens to go on from"
        if _field(item, "index"):
            self._obstacle = "items of several choices came"
        link = _field(item, "worker_trace_link")
        if link is not None:
            self._link = link
        self.is_complete = is_terminal(item)

    async def resume(self, error: Exception) -> tuple[FusedRun[Any], ResumePoint]:
        """Open the stream to go on with; raises *error* when there is none."""
        refusal: NotResumable | None = None
        try:
            while refusal is None:
                refusal = self._refusal()
                if refusal is not None:
                    break
                self._attempts += 1
                point = ResumePoint(
                    error, self._attempts, self._token_ids.tolist(), self._last_item, self._link
                )
                try:
                    run = await opened(self._reopen(point), "resume_on: reopen")
                except NotResumable as reason:
                    refusal = reason
                except Exception as failure:
                    if not self._means_lost(failure) or self._attempts >= self._limit:
                        refusal = NotResumable(f"what was to go on failed: {failure}")
                        refusal.__cause__ = failure
                else:
                    self._link = None
                    return run, point
            error.add_note(f"not resumed: {refusal}")
            _add_cause(error, refusal)
            raise error
        finally:
            # As above.
            del error, refusal

    def _refusal(self) -> NotResumable | None:
        if self._attempts >= self._limit:
            times = "once" if self._attempts == 1 else f"{self._attempts} times"
            return NotResumable(f"resumed {times} already, the limit is {self._limit}")
        if self._is_stopped():
            return NotResumable("the request was told to stop")
        return None if self._obstacle is None else NotResumable(self._obstacle)

    def _means_lost(self, error: Exception) -> bool:
        errors = self._errors
        if isinstance(errors, type | tuple):
            return isinstance(error, errors)
        return errors(error)


def _add_cause(error: BaseException, cause: BaseException) -> None:
    """Make *cause* the nearest cause of *error*, and what was that the farthest one of *cause*."""
    end = cause
    while end.__cause__ is not None:
        end = end.__cause__
    if error.__cause__ is not None and error.__cause__ is not end:
        end.__cause__ = error.__cause__
    error.__cause__ = cause


def _field(item: Any, name: str) -> object:
    if isinstance(item, Mapping):
        return cast("Mapping[str, object]", item).get(name)
    return getattr(item, name, None)
