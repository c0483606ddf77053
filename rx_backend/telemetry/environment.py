"""Variables of the environment as numbers and choices, and what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from urllib.parse import urlsplit

from rx_backend.errors import InvalidArgument

__all__ = ("FALSE", "TRUE", "Environment", "check_url", "one_of", "port_of")

TRUE, FALSE = frozenset({"1", "true", "on", "yes"}), frozenset({"0", "false", "off", "no", ""})


class Environment:
    """
    Reads variables; an empty one is one that is not set.

    All methods raise ``InvalidArgument`` for a value that does not fit; it names the variable.

    Args:
        variables: The variables.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables

    def text(self, name: str) -> str | None:
        """Give a variable's text; None where it is not set."""
        return self._variables.get(name, "").strip() or None

    def first_of(self, *names: str) -> str | None:
        """Give the name of the first that is set."""
        return next(filter(self.text, names), None)

    def switch(self, name: str) -> bool | None:
        """Give a switch; None where the variable is missing. Here, as for Dynamo, empty is off."""
        text = self._variables.get(name)
        if text is None:
            return None
        if text.strip().lower() not in TRUE | FALSE:
            raise InvalidArgument(f"{name}: expected true or false, got {text!r}")
        return text.strip().lower() in TRUE

    def whole(self, name: str, default: int, *, low: int = 1, high: int | None = None) -> int:
        """Give a whole number."""
        text = self.text(name)
        if text is None:
            return default
        if not text.isdecimal() or not low <= int(text) <= (high or int(text)):
            limit = "" if high is None else f" to {high}"
            raise InvalidArgument(
                f"{name}: expected a whole number from {low}{limit}, got {text!r}"
            )
        return int(text)

    def ratio(self, name: str) -> float | None:
        """Give a number from 0 to 1; None where the variable is not set."""
        text = self.text(name)
        value = None if text is None else _float(text)
        if text is not None and (value is None or not 0.0 <= value <= 1.0):
            raise InvalidArgument(f"{name}: expected a number from 0 to 1, got {text!r}")
        return value

    def check_positive(self, name: str) -> None:
        """Refuse what is no number above 0."""
        text = self.text(name)
        value = 1.0 if text is None else _float(text)
        if value is None or value <= 0.0:
            raise InvalidArgument(f"{name}: expected a number above 0, got {text!r}")


def one_of(name: str, value: str, valid: tuple[str, ...]) -> None:
    """
    Refuse a value that is not valid.

    Raises:
        InvalidArgument: It is none of *valid*.
    """
    if value not in valid:
        raise InvalidArgument(f"{name}: expected one of {', '.join(valid)}, got {value!r}")


def check_url(name: str, url: str) -> None:
    """
    Refuse what is no address of an HTTP or gRPC receiver.

    Raises:
        InvalidArgument: It has no scheme ``http`` or ``https``, no host, or a port that is none.

    >>> check_url("endpoint", "localhost:4317")
    Traceback (most recent call last):
    ...
    rx_backend.errors.InvalidArgument: BackendInvalidArgument: endpoint: expected a URL as \
http://127.0.0.1:4317, got 'localhost:4317'
    """
    try:
        parts = urlsplit(url)
        fits = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits:
        raise InvalidArgument(f"{name}: expected a URL as http://127.0.0.1:4317, got {url!r}")


def port_of(url: str) -> int | None:
    """Give the port that *url* names; None where it names none."""
    try:
        return urlsplit(url).port
    except ValueError:
        return None


def _float(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
