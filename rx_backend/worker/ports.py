"""Checking the ports to listen on beforehand, because the runtime's errors name no setting."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from rx_backend.addresses import MAX_PORT, cannot_listen, port_number
from rx_backend.errors import CannotConnect, InvalidArgument
from rx_backend.worker.bad_setting import BadSetting

__all__ = ("HTTP_SETTING", "check_free", "check_runtime_ports")

HTTP_SETTING = "--http-host and --http-port"
"""The settings with a frontend's address."""

_HIGHEST_SYSTEM_PORT = 32767  # a signed 16-bit number in the runtime
_EVERYWHERE = "0.0.0.0"  # noqa: S104 - the runtime's own default, or a check of all addresses


async def check_runtime_ports(environ: Mapping[str, str], *, takes_requests: bool) -> None:
    """
    Check the addresses that the runtime listens on, as environment variables set them.

    Args:
        environ: The environment.
        takes_requests: Whether requests arrive here over TCP, as in a worker.

    Raises:
        CannotConnect: One is in use, or not local; the message names its variable.
        BadSetting: A port is invalid.
    """
    names = ["DYN_TCP_RPC"] if takes_requests else []
    for name in [*names, "DYN_TCP_RESPONSE_STREAM"]:
        await _check(environ, name, environ.get(f"{name}_PORT") or "0")
    # The runtime does not listen by default, nor if the port is negative or taken.
    text = environ.get("DYN_SYSTEM_PORT") or "-1"
    if not (text.startswith("-") and text[1:].isdecimal()):
        await _check(environ, "DYN_SYSTEM", text, highest=_HIGHEST_SYSTEM_PORT)


async def _check(environ: Mapping[str, str], name: str, text: str, highest: int = MAX_PORT) -> None:
    try:
        port = port_number(f"{name}_PORT", text, highest)
    except InvalidArgument as error:
        raise BadSetting(error.message) from None
    host = environ.get(f"{name}_HOST") or _EVERYWHERE
    await check_free(host, port, f"{name}_HOST and _PORT")


async def check_free(host: str, port: int, setting: str) -> None:
    """
    Check that a server can listen at an address: an existing one would be mistaken for ours.

    Args:
        host: The address.
        port: The port; 0 for any.
        setting: The settings with the two, for the error.

    Raises:
        CannotConnect: It can't listen there.
    """
    try:
        probe = await asyncio.get_running_loop().create_server(asyncio.Protocol, host, port)
    except (OSError, UnicodeError) as error:
        raise CannotConnect(cannot_listen(setting, host, port, error)) from error
    probe.close()
    await probe.wait_closed()
