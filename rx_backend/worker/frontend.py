"""Knowing when the frontend answers for a model."""

from __future__ import annotations

import asyncio
import json

__all__ = ("until_listed",)

_POLL_S = 0.05


async def until_listed(host: str, port: int, model: str) -> None:
    """
    Wait until the frontend lists *model*.

    Args:
        host: Where the frontend listens.
        port: Its port.
        model: The model's name as clients give it.
    """
    while model not in await _models(host, port):  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(_POLL_S)


async def _models(host: str, port: int) -> list[str]:
    """Ask for the list; empty as long as nobody answers."""
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError:
        return []
    try:
        writer.write(f"GET /v1/models HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        answer = await reader.read()
        return [entry["id"] for entry in json.loads(answer.partition(b"\r\n\r\n")[2])["data"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    finally:
        writer.close()
