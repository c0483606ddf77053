"""Addresses that a process listens on: a port in a setting, and how an address is written."""

from __future__ import annotations

from rx_backend.errors import InvalidArgument

__all__ = ("HIGHEST_PORT", "host_and_port", "port_number")

HIGHEST_PORT = 65535


def port_number(setting: str, text: str, highest: int = HIGHEST_PORT) -> int:
    """
    Return the port in a text; 0 is any.

    Args:
        setting: What the text is from, for the error.
        text: The text.
        highest: The highest port that is possible.

    Raises:
        InvalidArgument: It is no port.

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
    Return an address as URLs have it.

    >>> host_and_port("localhost", 8000), host_and_port("::1", 8000)
    ('localhost:8000', '[::1]:8000')
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
