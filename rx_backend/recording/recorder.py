"""The operator that records a stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from os import PathLike
from typing import Any, cast

from operators.assembly import Callbacks, callbacks
from operators.authoring import Clock, same_type
from rx_backend.disagg import DisaggregationMode
from rx_backend.engines.checks import text, whole
from rx_backend.recording.model import RecordedRequest
from rx_backend.recording.place import Place, check_path
from rx_backend.recording.tape import Tape
from rx_backend.scope import RequestScope

__all__ = ("record",)


def _check(
    path: str | PathLike[str],
    *,
    request_id: object = None,
    model: object = None,
    mode: Any = None,
    prompt_tokens: object = None,
    buffer_bytes: object = 8192,
    **_: object,
) -> None:
    check_path(path)
    for name, value in (("request_id", request_id), ("model", model)):
        if value is not None:
            text(f"record: {name}", value)
    if mode is not None:
        DisaggregationMode.parse(mode)
    if prompt_tokens is not None:
        whole("record: prompt_tokens", prompt_tokens, low=0, unit="tokens")
    whole("record: buffer_bytes", buffer_bytes, low=0, unit="bytes")


@same_type
@callbacks(check=_check)
def record(
    path: str | PathLike[str],
    *,
    request_id: str | None = None,
    model: str | None = None,
    mode: DisaggregationMode | str | None = None,
    prompt_tokens: object = None,
    prompt_token_ids: Sequence[int] | None = None,
    clock: Clock | None = None,
    buffer_bytes: object = 8192,
    scope: RequestScope | None = None,
) -> Callbacks[Any, Any]:
    """
    Keep a stream in a file, with its timing; pass every item through unchanged.

    The file has a line for what is known of the request, one for each chunk with its time since the
    stream's start (when the engine's set-up has returned, as in row F2), and one for how it ended::

        source  ---a-b-|
        result  ---a-b-|
        file    h--a-b-e

    Each stream has a file of its own, which is complete when the stream has ended, whichever way.
    Nothing happens per token but that its line is appended to a buffer; with *buffer_bytes* of them
    the file is opened, written on and closed. What fails at that (a full disk, a chunk with
    something that has no JSON form) is logged once for the stream, and the recording stops there;
    the stream goes on.

    At the end of a pipeline, as in ``adapter.with_operators(record(...))``, it records what the
    client gets; in front, what the engine gives. An item that has no chunk, such as a heartbeat, is
    left out. A request that the engine refuses in its set-up has no stream, and no recording.

    Args:
        path: A file; it is replaced when it exists, and a stream beside one that is still writing
            to it gets ``name-2.jsonl``. For many requests, a directory (one that exists, or a text
            that ends with a slash), or a template: ``runs/{model}/{request_id}.jsonl``.
            Placeholders are ``request_id``, ``model``, ``mode``, and ``number``, which counts
            streams and skips files that exist. Directories are made when they are needed, and
            characters that don't belong in a file name are escaped as in a URL.
        request_id: Instead of the scope's, as all that follow.
        model: The model.
        mode: The worker's role.
        prompt_tokens: Length of the prompt, in tokens.
        prompt_token_ids: The prompt itself, which is kept only when it is given here.
        clock: Monotonic clock, in seconds; the event loop's by default, virtual time included.
        buffer_bytes: Lines are written when there are so many bytes of them. A process that is
            killed loses at most these; 0 writes each chunk at once.
        scope: The scope of the stream, filled in by a pipeline: has id, model, mode, length of the
            prompt, and the clock.

    Raises:
        InvalidArgument: An argument doesn't fit; the message names it.

    Errors: source errors pass unchanged, and are recorded with kind and message.
    On dispose: recorded as ``dropped``, unless the terminal has passed already.

    >>> import asyncio, tempfile
    >>> from pathlib import Path
    >>> from rx_backend import EngineAdapter, PreprocessedRequest
    >>> from rx_backend.engines import SampleEngine
    >>> from rx_backend.testing import run_virtual
    >>> async def main(folder):
    ...     adapter = EngineAdapter(SampleEngine())
    ...     adapter = adapter.with_operators(record(f"{folder}/runs/", request_id="r1"))
    ...     request = PreprocessedRequest(token_ids=[1], stop_conditions={"max_tokens": 1})
    ...     async for item in await adapter.generate(request):
    ...         pass
    ...     print(Path(folder, "runs/r1.jsonl").read_text(), end="")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run_virtual(main(folder))  # doctest: +NORMALIZE_WHITESPACE
    {"format":"rx-backend-recording","version":1,"request_id":"r1","mode":"agg","prompt_tokens":1}
    {"time_ms":10.0,"chunk":{"token_ids":[0],"finish_reason":"length","completion_usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}}
    {"time_ms":10.0,"end":"completed"}
    """
    known = RecordedRequest() if scope is None else _known(scope)
    known.request_id = request_id or known.request_id
    known.model = model or known.model
    if mode is not None:
        known.mode = str(DisaggregationMode.parse(mode))
    if prompt_token_ids is not None:
        known.prompt_token_ids = list(prompt_token_ids)
        known.prompt_tokens = len(known.prompt_token_ids)
    if prompt_tokens is not None:
        known.prompt_tokens = cast("int", prompt_tokens)
    if clock is None:
        clock = _running_clock() if scope is None else scope.clock
    tape = Tape(known, Place(path, known), clock, cast("int", buffer_bytes))
    return Callbacks(tape.note, on_end=tape.end)


def _known(scope: RequestScope) -> RecordedRequest:
    return RecordedRequest(
        request_id=scope.context.id,
        model=scope.request.model or None,
        mode=str(scope.mode),
        prompt_tokens=len(scope.request.token_ids),
    )


def _running_clock() -> Clock:
    """Return the running loop's clock; in plain code, where streams are pushed, the monotonic one."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return time.monotonic
    # The function behind a stock loop's clock is faster.
    return time.monotonic if type(loop).time is asyncio.BaseEventLoop.time else loop.time
