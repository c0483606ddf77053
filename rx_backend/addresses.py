"""Addresses that a process listens on: a port in a setting, and the address in a message."""

from __future__ import annotations

import errno
import os

from rx_backend.errors import InvalidArgument

__all__ = ("MAX_PORT", "cannot_listen", "host_and_port", "port_number")

MAX_PORT = 65535


def port_number(setting: str, text: str, highest: int = MAX_PORT) -> int:
    """
    Return the port in *text*; 0 means any.

    Args:
        setting: The setting that *text* comes from, for the error.
        text: The text.
        highest: The highest valid port.

    Raises:
        InvalidArgument: It is not a port.

    >>> port_number("PORT", "8000")
    8000
    """
    try:
        port = int(text) if text.isdecimal() else -1
    except ValueError:  # more digits than Python converts
        port = -1
    if not 0 <= port <= highest:
        raise InvalidArgument(f"{setting}: expected a port from 0 to {highest}, got {text[:80]!r}")
    return port


def host_and_port(host: str, port: int) -> str:
    """
    Return an address in the form used in URLs.

    >>> host_and_port("localhost", 8000), host_and_port("::1", 8000)
    ('localhost:8000', '[::1]:8000')
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def cannot_listen(setting: str, host: str, port: int, error: OSError | UnicodeError) -> str:
    """
    Return the message for an address that can't be listened on, with the system's reason.

    Args:
        setting: The setting with the address.
        host: The address.
        port: The port.
        error: The error of listening on it.

    >>> cannot_listen("--port", "::1", 80, PermissionError(13, "with the address in its text"))
    "--port: can't listen on [::1]:80: Permission denied"
    """
    # An event loop's message repeats the address; an error of name resolution has no number. On
    # Python 3.13 and later asyncio sets none for an address that isn't local.
    number = getattr(error, "errno", 0)
    number = errno.EADDRNOTAVAIL if number is None else number
    reason = os.strerror(number) if number > 0 else getattr(error, "strerror", None) or error
    return f"{setting}: can't listen on {host_and_port(host, port)}: {reason}"
