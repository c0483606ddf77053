"""The operator that records a stream."""

from __future__ import annotations

import time
from os import PathLike
from typing import Any

from operators.assembly import Callbacks, callbacks
from operators.authoring import same_type
from rx_backend.checks import file_path
from rx_backend.errors import InvalidArgument
from rx_backend.recording.model import Recording
from rx_backend.recording.stream_recorder import StreamRecorder
from rx_backend.scope import RequestScope

__all__ = ("record",)


def _check_folder(folder: str | PathLike[str], **_: object) -> None:
    """Raise ``InvalidArgument`` unless *folder* can be a directory."""
    path = file_path("record: folder", folder)
    if path.suffix == ".jsonl" or (path.exists() and not path.is_dir()):
        raise InvalidArgument(f"record: folder: expected a directory, got the file {str(path)!r}")


@same_type
@callbacks(check=_check_folder)
def record(
    folder: str | PathLike[str],
    *,
    prompts: bool = False,
    scope: RequestScope | None = None,
) -> Callbacks[Any, Any]:
    """
    Record each stream with its timing in a separate file; pass every item unchanged.

    The file has a line for the request, one per chunk with its time since the stream's start (when
    the engine's set-up has returned, as in row F2), and one for the stream's end::

        source  ---a-b-|
        result  ---a-b-|
        file    h--a-b-e

    It is named ``<request id>.jsonl``, and never replaces another: if the name exists, for example
    because another worker had the request before, the time in ns is appended. It is complete once
    the stream has ended in any way; a killed process loses at most 8 KiB of each stream. Text that
    UTF-8 can't express is repaired (U+FFFD). An error (a full disk, a chunk with something that has
    no JSON form) is logged once and ends the recording, not the stream.

    At the end of a pipeline, as in ``adapter.with_operators(record(...))``, it records what the
    client gets; at the start, what the engine yields. Items without a chunk, such as heartbeats,
    are not recorded. A request that fails in its set-up has no stream, and so no recording.

    Args:
        folder: The directory of the files; created when needed.
        prompts: Whether to also record the prompt's token ids.
        scope: The scope of the stream, filled in by a pipeline.

    Raises:
        InvalidArgument: *folder* is not a path, or names a file.

    Errors: source errors pass unchanged, and are recorded with kind and message.
    On dispose: recorded as ``dropped``, unless the terminal has already passed.

    >>> import asyncio, tempfile
    >>> from pathlib import Path
    >>> from rx_backend import EngineAdapter, PreprocessedRequest, RequestContext
    >>> from rx_backend.engines import SampleEngine
    >>> from rx_backend.testing import run_virtual
    >>> async def main(folder):
    ...     adapter = EngineAdapter(SampleEngine()).with_operators(record(folder))
    ...     request = PreprocessedRequest(token_ids=[1], stop_conditions={"max_tokens": 1})
    ...     async for item in await adapter.generate(request, RequestContext("r1")):
    ...         pass
    ...     print(Path(folder, "r1.jsonl").read_text(), end="")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run_virtual(main(folder))  # doctest: +NORMALIZE_WHITESPACE
    {"format":"rx-backend-recording","version":1,"request_id":"r1","mode":"agg","prompt_tokens":1}
    {"time_ms":10.0,"chunk":{"token_ids":[0],"finish_reason":"length","completion_usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}}
    {"time_ms":10.0,"end":"completed"}
    """
    request, clock, answers = Recording(), time.monotonic, 1
    if scope is not None:
        clock, answers = scope.clock, scope.answers
        prompt = scope.request.token_ids
        request = Recording(
            request_id=scope.context.id,
            model=scope.request.model or None,
            mode=str(scope.mode),
            prompt_tokens=len(prompt),
            prompt_token_ids=list(prompt) if prompts else None,
        )
    recorder = StreamRecorder(folder, request, clock, answers)
    return Callbacks(recorder.record_item, on_end=recorder.complete)
