"""Connecting to NATS: addresses, key files and errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import nats.errors

from rx_backend.errors import BackendError, CannotConnect, InvalidArgument

__all__ = ("addresses", "check_key_files", "not_connected")

_KEY_OPTIONS: Final = ("user_credentials", "nkeys_seed", "nkeys_seed_str")
_PARTS_OF_CREDENTIALS: Final = (b"BEGIN NATS USER JWT", b"BEGIN USER NKEY SEED")


def addresses(servers: Sequence[str]) -> str:
    """
    Return URLs for a message, without users, passwords and tokens.

    >>> addresses(["nats://ann:secret@one:4222", "nats://two:4222"])
    'nats://one:4222, nats://two:4222'
    """
    return ", ".join(map(_without_user, servers))


def _without_user(url: str) -> str:
    scheme, separator, rest = url.rpartition("://")
    return scheme + separator + rest.rpartition("@")[2]


def check_key_files(connect: Mapping[str, Any]) -> None:
    """
    Check the files of `user_credentials` and `nkeys_seed`.

    NATS's client reads them when a server requests a signature, and would loop forever on an
    invalid credentials file.

    Raises:
        InvalidArgument: A file can't be read, or has no credentials.
    """
    credentials, seed = connect.get("user_credentials"), connect.get("nkeys_seed")
    if isinstance(credentials, str | Path):
        content = _content("user_credentials", credentials)
        if not all(part in content for part in _PARTS_OF_CREDENTIALS):
            raise InvalidArgument(
                f"connect: user_credentials: expected a file with a user's JWT and seed, got "
                f"{str(credentials)!r}"
            )
    elif isinstance(credentials, tuple):
        for part in cast("tuple[str, ...]", credentials):
            _content("user_credentials", part)
    if seed is not None:
        _content("nkeys_seed", seed)


def _content(option: str, path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgument(f"connect: {option}: {error}") from error


def not_connected(
    servers: Sequence[str], connect: Mapping[str, Any], error: Exception
) -> BackendError:
    """Return the client's error on connecting as a typed error."""
    where = f"NATS at {addresses(servers)}"
    if isinstance(error, nats.errors.Error | OSError):
        text = str(error)
        if "connect url" in text:
            return InvalidArgument(f"servers: {text}: {addresses(servers)}")
        if "authorization" in text.lower():
            text = "authorization failed: the server rejects the user, password, token or key"
        return CannotConnect(f"{where}: {text}")
    if isinstance(error, ImportError):
        given = " and ".join(option for option in _KEY_OPTIONS if option in connect)
        return InvalidArgument(
            f"connect: {given or error.name} needs the package {error.name}: pip install {error.name}"
        )
    # Anything else concerns the options, or the form of the URLs.
    return InvalidArgument(f"servers, connect: {str(error) or type(error).__name__}")
