"""The services that the runtime connects to, etcd and NATS: addresses, and waiting for them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from rx_backend.errors import CannotConnect
from rx_backend.logger import get_logger
from rx_backend.worker.bad_setting import BadSetting

__all__ = ("Service", "services", "until_reachable")

_PATIENCE_S = 30.0
_TRY_S, _POLL_S = 5.0, 0.25


@dataclass(frozen=True, slots=True)
class Service:
    """
    A service and its addresses.

    >>> str(Service("etcd", "ETCD_ENDPOINTS", "http://me:secret@a:1,http://b:2"))
    'etcd at http://a:1,http://b:2 (ETCD_ENDPOINTS)'

    Attributes:
        name: Its name.
        variable: The environment variable with its addresses.
        addresses: Separated by commas; one that responds is enough.
        port: The port of an address without one.
        patience_s: How long to wait for it, in seconds.
    """

    name: str
    variable: str
    addresses: str
    port: int = 0
    patience_s: float = _PATIENCE_S

    def __str__(self) -> str:
        """Return name and addresses, without passwords."""
        return f"{self.name} at {re.sub('//[^@,]*@', '//', self.addresses)} ({self.variable})"

    @property
    def places(self) -> list[tuple[str, int]]:
        """Host and port of each address that names a host."""
        places: list[tuple[str, int]] = []
        for address in self.addresses.split(","):
            with suppress(ValueError):
                parts = urlsplit(address if "//" in address else f"//{address}")
                if parts.hostname:
                    places.append((parts.hostname.strip(), parts.port or self.port))
        return places


def services(discovery: str, request_plane: str, environ: Mapping[str, str]) -> list[Service]:
    """
    Return the services that the runtime will connect to, given the environment.

    Raises:
        BadSetting: The runtime has no such event plane.

    >>> [str(one) for one in services("etcd", "tcp", {})]
    ['etcd at http://localhost:2379 (ETCD_ENDPOINTS)']
    >>> [str(one) for one in services("file", "nats", {"NATS_SERVER": "nats://queue:4222"})]
    ['NATS at nats://queue:4222 (NATS_SERVER)']
    """
    found: list[Service] = []
    if discovery == "etcd":
        addresses = environ.get("ETCD_ENDPOINTS", "http://localhost:2379")
        found.append(Service("etcd", "ETCD_ENDPOINTS", addresses, 2379, _patience(environ, "ETCD")))
    events = environ.get("DYN_EVENT_PLANE", "").strip().lower()
    if events not in {"", "nats", "zmq"}:
        raise BadSetting(f"DYN_EVENT_PLANE: expected nats or zmq, got {events!r}")
    if "nats" in {request_plane, events} or "NATS_SERVER" in environ:
        addresses = environ.get("NATS_SERVER", "nats://localhost:4222")
        found.append(Service("NATS", "NATS_SERVER", addresses, 4222, _patience(environ, "NATS")))
    return found


async def until_reachable(service: Service) -> None:
    """
    Wait until one of the service's addresses accepts a connection.

    An address that can't be parsed is left for the runtime to report.

    Raises:
        CannotConnect: None did within ``patience_s``.
    """
    if not service.places or await _answers(service):
        return
    _log.warning("service does not respond yet", service=str(service), wait_s=service.patience_s)
    try:
        async with asyncio.timeout(service.patience_s):
            while not await _answers(service):  # noqa: ASYNC110 - no event to wait for
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise CannotConnect(f"{service}: no connection within {service.patience_s:g} s") from None


async def _answers(service: Service) -> bool:
    for host, port in service.places:
        with suppress(OSError, UnicodeError):  # the latter for a name that is none in DNS
            async with asyncio.timeout(_TRY_S):
                _, writer = await asyncio.open_connection(host, port)
            writer.close()
            return True
    return False


def _patience(environ: Mapping[str, str], name: str) -> float:
    """Read a number of seconds as the runtime does, ignoring any other text."""
    text = environ.get(f"{name}_STARTUP_CONNECT_TIMEOUT_SECONDS", "")
    return float(text) if text.isascii() and text.isdigit() and int(text) else _PATIENCE_S


_log = get_logger(__name__)
