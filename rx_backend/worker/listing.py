"""Keeping a worker listed in discovery while it serves."""

from __future__ import annotations

import asyncio

from rx_backend.logger import get_logger
from rx_backend.worker.dynamo_runtime import DynamoEndpoint

__all__ = ("keep_listed",)

_LISTED_POLL_S = 1.0
_RESTORE_TRIES, _TRY_S = 5, 10.0


async def keep_listed(endpoint: DynamoEndpoint) -> object:
    """
    Register again whenever discovery has dropped the worker, for example after a suspension.

    Returns:
        Why it can no longer be registered.
    """
    while True:
        await asyncio.sleep(_LISTED_POLL_S)
        if not endpoint.is_listed():
            failure = await _restore(endpoint)
            if failure is not None:
                return failure


async def _restore(endpoint: DynamoEndpoint) -> object | None:
    _log.warning("worker is not listed in discovery, registering again")
    failure: object = "still not listed"
    for _ in range(_RESTORE_TRIES):
        try:
            async with asyncio.timeout(_TRY_S):
                await endpoint.restore()
        except Exception as error:
            failure = str(error) or repr(error)
        await asyncio.sleep(_LISTED_POLL_S)
        if endpoint.is_listed():
            _log.warning("worker is listed in discovery again")
            return None
    return failure


_log = get_logger(__name__)
