"""The ports that a process is to listen on, checked first: the runtime's errors name no setting."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress

from rx_backend.errors import CannotConnect, InvalidArgument

__all__ = ("check_free", "check_runtime_ports")

_EVERYWHERE = "0.0.0.0"  # noqa: S104 - the runtime's own default, or a check of all addresses


async def check_runtime_ports(environ: Mapping[str, str], *, takes_requests: bool) -> None:
    """
    Check the addresses that the runtime listens on, as environment variables set them.

    Args:
        environ: The environment.
        takes_requests: Whether requests arrive here over TCP, as in a worker.

    Raises:
        CannotConnect: One is in use, or not of this machine; the message names its variable.
        InvalidArgument: A port is none.
    """
    names = ["DYN_TCP_RPC"] if takes_requests else []
    for name in [*names, "DYN_TCP_RESPONSE_STREAM"]:
        text = environ.get(f"{name}_PORT") or "0"
        if not text.isdecimal() or int(text) > _HIGHEST:
            raise InvalidArgument(f"{name}_PORT: expected a port from 0 to 65535, got {text!r}")
        await check_free(environ.get(f"{name}_HOST") or _EVERYWHERE, int(text), f"{name}_PORT")
    # The runtime checks this number itself, but would do without the port where it is taken.
    with suppress(ValueError):
        port = int(environ.get("DYN_SYSTEM_PORT", ""))
        if 0 < port <= _HIGHEST:
            host = environ.get("DYN_SYSTEM_HOST") or _EVERYWHERE
            await check_free(host, port, "DYN_SYSTEM_PORT")


async def check_free(host: str, port: int, setting: str) -> None:
    """
    Check that a server can listen at an address: one that is there would be mistaken for ours.

    Args:
        host: The address.
        port: The port; 0 for any.
        setting: What names the port, for the error.

    Raises:
        CannotConnect: It can't.
    """
    try:
        probe = await asyncio.get_running_loop().create_server(asyncio.Protocol, host, port)
    except OSError as error:
        # The event loop's own text has the address too; that of a name's look-up has no number.
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror
        raise CannotConnect(f"{setting}: can't listen on {host}:{port}: {reason}") from error
    probe.close()
    await probe.wait_closed()


_HIGHEST = 65535
