"""Stopping an answer that another process writes, or no process."""

from __future__ import annotations

import asyncio

import nats.errors

from rx_backend.context import RequestContext
from rx_backend.errors import BackendError
from rx_backend.logger import describe, get_logger
from rx_backend.resumable.jetstream._answer_log import AnswerLog
from rx_backend.resumable.jetstream._continuation import stopped
from rx_backend.resumable.jetstream._errors import Fenced
from rx_backend.resumable.jetstream._follower import Follower
from rx_backend.resumable.jetstream._site import Site

__all__ = ("pass_on_stop",)


async def pass_on_stop(
    site: Site, subject: str, follower: Follower, context: RequestContext
) -> None:
    """
    Have the writing process stop an answer, or end it here if there is none.

    Args:
        site: The state shared by all answers.
        subject: The answer's subject.
        follower: Its follower in this process.
        context: The request's context; nothing is done unless it is stopped.
    """
    if follower.is_over or not context.is_stopped or not site.link.is_up:
        return
    try:
        if await site.peers.send_stop(follower, kill=context.is_killed):
            return
        async with asyncio.timeout(site.options.timeout_s):
            if await _end(site, subject, follower):
                site.ended(subject)
    except (nats.errors.Error, OSError, BackendError, TimeoutError) as error:
        _log.warning("answer was not stopped", stream_id=follower.id, **describe(error))


async def _end(site: Site, subject: str, follower: Follower) -> bool:
    """Append the terminals, fencing off any writer; return False if the answer was over."""
    while True:
        last = await site.link.last(subject)
        if last is None:
            return False
        await follower.read_to(last.sequence)
        if follower.is_over:
            return False
        log = AnswerLog.after(follower, site, subject)
        try:
            await log.append_items(stopped(follower.answers.left), is_end=True)
        except Fenced:
            # A writer was faster: retry after its entry.
            continue
        return True


_log = get_logger(__name__)
