"""The JetStream stream of all answers, and JetStream's errors."""

from __future__ import annotations

from typing import Any, Final

import nats.errors
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig, StreamInfo
from nats.js.errors import APIError, BadRequestError, NotFoundError, ServiceUnavailableError

from rx_backend.errors import BackendError, CannotConnect, InvalidArgument, Unknown
from rx_backend.logger import get_logger
from rx_backend.resumable.jetstream._errors import EntryTooLarge, StreamFull
from rx_backend.resumable.jetstream._options import Options

__all__ = ("ensure_stream", "is_full", "refused")

# JetStream's error codes that have no exception class.
_TOO_LARGE: Final = 10054
_FULL: Final = {10023, 10028, 10047, 10077}
_NO_CLUSTER: Final = 10074
_TOO_FEW_SERVERS: Final = 10005


async def ensure_stream(jetstream: JetStreamContext, options: Options) -> None:
    """
    Create the stream if it is missing.

    Raises:
        CannotConnect: The server has no JetStream or no room for the stream, or there are fewer
            servers than replicas.
        InvalidArgument: The stream exists with a configuration that would lose items, or several
            replicas are wanted of a single server.
        BackendError: The server does not allow it.
    """
    wanted = StreamConfig(
        name=options.name,
        subjects=[f"{options.name}.*"],
        retention=RetentionPolicy.LIMITS,
        # With "old", a running answer would lose its beginning.
        discard=DiscardPolicy.NEW,
        max_msgs_per_subject=-1,
        no_ack=False,
        storage=StorageType.FILE,
        num_replicas=options.replicas,
        max_age=options.max_age_s,
        max_bytes=options.max_bytes,
        # Expected sequence numbers prevent duplicates; message ids would cost the server memory.
        duplicate_window=1.0,
    )
    try:
        try:
            info = await jetstream.stream_info(options.name)
        except NotFoundError:
            info = await _created(jetstream, wanted)
    except nats.errors.Error as error:
        raise _not_created(error, options) from error
    _check(info, wanted)


def _not_created(error: nats.errors.Error, options: Options) -> BackendError:
    number = error.err_code if isinstance(error, APIError) else None
    if number == _NO_CLUSTER:
        return InvalidArgument(
            f"replicas: expected 1 for a server outside a cluster, got {options.replicas}"
        )
    if number == _TOO_FEW_SERVERS:
        return CannotConnect(
            f"replicas: expected at least {options.replicas} running servers with JetStream in the "
            f"cluster and with room for stream {options.name!r}, but there are fewer"
        )
    return refused(error, f"stream {options.name!r}")


async def _created(jetstream: JetStreamContext, wanted: StreamConfig) -> StreamInfo:
    try:
        return await jetstream.add_stream(wanted)  # pyright: ignore[reportUnknownMemberType]
    except BadRequestError:
        # Perhaps another process was faster, with other limits.
        try:
            return await jetstream.stream_info(str(wanted.name))
        except NotFoundError:
            pass
        raise


def _check(info: StreamInfo, wanted: StreamConfig) -> None:
    found = info.config
    for field in ("retention", "discard", "subjects", "max_msgs_per_subject", "no_ack"):
        has: Any = getattr(found, field)
        needs: Any = getattr(wanted, field)
        if has != needs:
            raise InvalidArgument(
                f"the JetStream stream {wanted.name!r} already exists with {field} {has!r}: "
                f"expected {needs!r}"
            )
    if (found.num_replicas or 1) < (wanted.num_replicas or 1):
        _log.warning(
            "the JetStream stream already exists, with fewer replicas",
            stream=wanted.name,
            replicas=found.num_replicas,
            wanted=wanted.num_replicas,
        )


def is_full(error: Exception) -> bool:
    """Return whether JetStream is full, which has the same class as temporary errors."""
    return isinstance(error, APIError) and error.err_code in _FULL


def refused(error: Exception, what: str) -> BackendError:
    """Return JetStream's rejection of the operation *what* as a typed error."""
    if not isinstance(error, APIError):
        return CannotConnect(f"{what}: JetStream does not respond: {error}")
    text = f"{what}: {error.description or 'JetStream does not respond'}"
    if is_full(error):
        return StreamFull(text)
    if error.err_code == _TOO_LARGE:
        return EntryTooLarge(text)
    return CannotConnect(text) if isinstance(error, ServiceUnavailableError) else Unknown(text)


_log = get_logger(__name__)
