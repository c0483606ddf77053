"""The exporters that OpenTelemetry's variables name, and their destinations."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib.metadata import EntryPoints, entry_points
from typing import Final, Literal
from urllib.parse import urlsplit

from rx_backend.errors import InvalidArgument
from rx_backend.telemetry.request_span import EXPORT_ENABLED, TRUE

__all__ = (
    "FALSE",
    "SERVICE",
    "Signal",
    "check_url",
    "destination",
    "exporter_names",
    "hide_secrets",
    "installed_exporters",
    "is_true",
    "one_of",
    "set_variables",
)

SERVICE: Final = "rx-backend"
"""The service's default name."""

FALSE: Final = frozenset({"0", "false", "off", "no", ""})
"""The values that disable a variable, in any case."""

Signal = Literal["traces", "metrics"]
"""OpenTelemetry's signals that are exported."""

_EXPORTERS: Final[Mapping[Signal, frozenset[str]]] = {
    "traces": frozenset({"otlp", "console", "none"}),
    "metrics": frozenset({"otlp", "console", "none", "prometheus"}),
}

_GRPC, _HTTP = "grpc", "http/protobuf"
_HTTP_PORT: Final = 4318


def exporter_names(environ: Mapping[str, str], signal: Signal) -> tuple[tuple[str, ...], str]:
    """
    Return the names of a signal's exporters in order; if none, the variable that disables it.

    Raises:
        InvalidArgument: There is no such exporter; the message names the variable.
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return (), "OTEL_SDK_DISABLED"
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    named = environ.get(variable, "").strip().lower() or "otlp"
    names = {name.strip() for name in named.split(",")} - {""}
    for name in names - _EXPORTERS[signal]:
        # The SDK's names with a protocol in them would ignore a given endpoint.
        if name.startswith("otlp") or not installed_exporters(signal, name):
            raise InvalidArgument(
                f"{variable}: expected {', '.join(sorted(_EXPORTERS[signal]))}, or another that is "
                f"installed, got {name!r}"
            )
    if "none" in names:
        return (), variable
    if not is_true(EXPORT_ENABLED, environ.get(EXPORT_ENABLED, "1")):
        # Prometheus scrapes metrics: nothing is sent.
        names &= {"prometheus"}
    return tuple(sorted(names)), "" if names else EXPORT_ENABLED


def installed_exporters(signal: Signal, name: str) -> EntryPoints:
    """Return the exporters of a signal that packages have registered under *name*."""
    return entry_points(group=f"opentelemetry_{signal}_exporter", name=name)


def destination(
    environ: Mapping[str, str], signal: Signal, endpoint: str | None = None
) -> tuple[str, str]:
    """
    Return a signal's OTLP protocol and URL; over HTTP the URL has the signal's path.

    Without a named protocol it is HTTP for port 4318, where the SDK would use gRPC. An *endpoint*
    takes precedence over the variables.

    Raises:
        InvalidArgument: The protocol or the URL is invalid; the message names the variable.

    >>> destination({}, "traces", "http://127.0.0.1:4318")
    ('http/protobuf', 'http://127.0.0.1:4318/v1/traces')
    """
    shared, own = "OTEL_EXPORTER_OTLP", f"OTEL_EXPORTER_OTLP_{signal.upper()}"
    exact = None if endpoint else environ.get(f"{own}_ENDPOINT")
    base = endpoint or environ.get(f"{shared}_ENDPOINT")
    place = exact or base
    protocol = None
    for variable in (f"{own}_PROTOCOL", f"{shared}_PROTOCOL"):
        if protocol is None and environ.get(variable):
            protocol = environ[variable].strip()
            one_of(variable, protocol, (_GRPC, _HTTP))
    if protocol is None:
        protocol = _HTTP if place and _port_of(place) == _HTTP_PORT else _GRPC
    # A gRPC target may have no scheme, or one such as unix:///run/otlp.
    is_url = protocol != _GRPC or bool(place and place.startswith(("http://", "https://")))
    if place and (is_url or place.split() != [place]):
        check_url(f"{own if exact else shared}_ENDPOINT", place)
    if protocol == _GRPC:
        return _GRPC, place or "http://localhost:4317"
    base = base or f"http://localhost:{_HTTP_PORT}"
    return _HTTP, exact or f"{base.rstrip('/')}/v1/{signal}"


def is_true(name: str, text: str) -> bool:
    """Return whether a switch is on; raise `InvalidArgument` if it is neither on nor off."""
    if text.strip().lower() not in TRUE | FALSE:
        raise InvalidArgument(f"{name}: expected true or false, got {text!r}")
    return text.strip().lower() in TRUE


def one_of(name: str, value: str, valid: tuple[str, ...]) -> None:
    """Raise `InvalidArgument` unless *value* is one of *valid*."""
    if value not in valid:
        raise InvalidArgument(f"{name}: expected one of {', '.join(valid)}, got {value!r}")


def check_url(name: str, url: str) -> None:
    """Raise `InvalidArgument` unless *url* has a scheme, ``http`` or ``https``, and a host."""
    if not isinstance(url, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgument(f"{name}: expected a URL such as http://127.0.0.1:4317, got {url!r}")
    try:
        parts = urlsplit(url)
        fits = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits or url.split() != [url]:
        shown = hide_secrets(re.sub(r"\s", "_", url))
        raise InvalidArgument(
            f"{name}: expected a URL such as http://127.0.0.1:4317, got {shown!r}"
        )


def hide_secrets(text: str) -> str:
    """
    Return a text without the users, passwords and queries of the URLs in it.

    >>> hide_secrets("to http://me:p@ss@host:4317/v1?key=k failed, as did me:p@ss@host:4317.")
    'to http://host:4317/v1 failed, as did host:4317.'
    """
    return re.sub(r"\S*[?@]\S*", lambda word: _without_secrets(word[0]), text)


def set_variables() -> str:
    """Return the OpenTelemetry variables that are set, for errors of the SDK that name none."""
    names = sorted(name for name in os.environ if name.startswith("OTEL_"))
    return f" (set: {', '.join(names)})" if names else ""


def _without_secrets(address: str) -> str:
    scheme = re.match(r"\W*\w+://", address)
    start = scheme[0] if scheme else ""
    place, _, query = address[len(start) :].partition("?")
    # A password may have a question mark, and a query an @: they can't be told apart.
    return start + ("***" if "@" in query else place.rpartition("@")[2])


def _port_of(url: str) -> int | None:
    try:
        return urlsplit(url if "//" in url else f"//{url}").port
    except ValueError:
        return None
