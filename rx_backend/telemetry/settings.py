"""OpenTelemetry's variables, checked; the SDK reads most of them itself, but checks none."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final, Literal
from urllib.parse import urlsplit

from rx_backend.errors import InvalidArgument
from rx_backend.telemetry.request_span import EXPORT_ENABLED

__all__ = (
    "FALSE",
    "SERVICE",
    "TRUE",
    "Signal",
    "batching",
    "check_url",
    "destination",
    "exporter_names",
    "hide_secrets",
    "is_true",
    "one_of",
    "settings",
)

SERVICE: Final = "rx-backend"
"""The service's name by default."""

TRUE, FALSE = frozenset({"1", "true", "on", "yes"}), frozenset({"0", "false", "off", "no", ""})

Signal = Literal["traces", "metrics"]

_GRPC, _HTTP = "grpc", "http/protobuf"
_HTTP_PORT: Final = 4318
_EXPORTERS: Final = {
    "traces": ("otlp", "console", "none"),
    "metrics": ("otlp", "console", "prometheus", "none"),
}
_SAMPLERS: Final = (
    *("always_on", "always_off", "traceidratio"),
    *("parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio"),
)
_EXEMPLAR_FILTERS: Final = ("trace_based", "always_on", "always_off")
# What a queue, a thread's wait and a socket take on every platform.
_MOST: Final = 2**31 - 1
_LONGEST_S: Final = _MOST // 1000
# Lowest and highest value, and whether it is a whole number. The SDK would take a default instead,
# raise, or fail in a thread.
_NUMBERS: Final[Mapping[str, tuple[float, float, bool]]] = {
    "OTEL_BSP_MAX_QUEUE_SIZE": (1, _MOST, True),
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": (1, _MOST, True),
    "OTEL_BSP_SCHEDULE_DELAY": (1, _MOST, True),
    "OTEL_BSP_EXPORT_TIMEOUT": (1, _MOST, True),
    "OTEL_METRIC_EXPORT_INTERVAL": (1, _MOST, False),
    "OTEL_METRIC_EXPORT_TIMEOUT": (1, _MOST, False),
    "OTEL_EXPORTER_OTLP_TIMEOUT": (0.001, _LONGEST_S, False),
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": (0.001, _LONGEST_S, False),
    "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT": (0.001, _LONGEST_S, False),
    "OTEL_EXPORTER_PROMETHEUS_PORT": (0, 65535, True),
    "OTEL_TRACES_SAMPLER_ARG": (0, 1, False),
    "OTEL_TRACES_SAMPLE_RATIO": (0, 1, False),
    "OTEL_ATTRIBUTE_COUNT_LIMIT": (0, _MOST, True),
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": (0, _MOST, True),
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": (0, _MOST, True),
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": (0, _MOST, True),
    "OTEL_SPAN_EVENT_COUNT_LIMIT": (0, _MOST, True),
    "OTEL_SPAN_LINK_COUNT_LIMIT": (0, _MOST, True),
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT": (0, _MOST, True),
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT": (0, _MOST, True),
}


def settings(
    environ: Mapping[str, str],
    *,
    service_name: str | None = None,
    endpoint: str | None = None,
    protocol: str | None = None,
    traces: bool | None = None,
    metrics: bool | None = None,
    prometheus_port: int | None = None,
) -> dict[str, str]:
    """
    Return the variables that are set, with the arguments of `configure` in their place.

    Raises:
        InvalidArgument: A value does not fit; the message names the argument or the variable.

    >>> found = settings({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, endpoint="http://127.0.0.1:4318")
    >>> destination(found, "traces")
    ('http/protobuf', 'http://127.0.0.1:4318/v1/traces')
    """
    found = {
        name: text.strip()
        for name, text in environ.items()
        if name.startswith("OTEL_") and (text.strip() or name == EXPORT_ENABLED)
    }
    if service_name:
        found["OTEL_SERVICE_NAME"] = service_name
    if endpoint is not None:
        check_url("endpoint", endpoint)
        _set_for_both(found, "ENDPOINT", endpoint)
    if protocol is not None:
        one_of("protocol", protocol, (_GRPC, _HTTP))
        _set_for_both(found, "PROTOCOL", protocol)
    for name, wanted in (("OTEL_TRACES_EXPORTER", traces), ("OTEL_METRICS_EXPORTER", metrics)):
        if wanted is False:
            found[name] = "none"
        elif wanted and "none" in found.get(name, ""):
            del found[name]
    if prometheus_port is not None:
        if metrics is False:
            raise InvalidArgument("prometheus_port: expected none where metrics is False")
        if not 0 <= prometheus_port < 65536:
            raise InvalidArgument(f"prometheus_port: expected 0 to 65535, got {prometheus_port}")
        found["OTEL_EXPORTER_PROMETHEUS_PORT"] = str(prometheus_port)
        others = found.get("OTEL_METRICS_EXPORTER", "none").replace("none", "")
        found["OTEL_METRICS_EXPORTER"] = f"{others},prometheus"
    _check(found)
    return found


def exporter_names(variables: Mapping[str, str], signal: Signal) -> tuple[tuple[str, ...], str]:
    """Return the names of a signal's exporters in order; without any, the variable that switches it off."""
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    named = variables.get(variable, "otlp").lower().split(",")
    names = {name.strip() for name in named} - {""}
    for name in names:
        one_of(variable, name, _EXPORTERS[signal])
    if "none" in names:
        names.clear()
    if names and not is_true(EXPORT_ENABLED, variables.get(EXPORT_ENABLED, "1")):
        # Prometheus fetches metrics: nothing is sent.
        variable, names = EXPORT_ENABLED, names & {"prometheus"}
    if variables.get("OTEL_SDK_DISABLED", "").lower() == "true":
        variable, names = "OTEL_SDK_DISABLED", set[str]()
    return tuple(sorted(names)), "" if names else variable


def destination(variables: Mapping[str, str], signal: Signal) -> tuple[str, str]:
    """
    Return a signal's OTLP protocol and address; over HTTP the address has the signal's path.

    Where no protocol is named it is HTTP for port 4318, which the SDK would speak gRPC to.
    """
    shared, own = "OTEL_EXPORTER_OTLP", f"OTEL_EXPORTER_OTLP_{signal.upper()}"
    exact, base = variables.get(f"{own}_ENDPOINT"), variables.get(f"{shared}_ENDPOINT")
    place = exact or base
    protocol = variables.get(f"{own}_PROTOCOL") or variables.get(f"{shared}_PROTOCOL")
    if protocol is None:
        protocol = _HTTP if place and _port_of(place) == _HTTP_PORT else _GRPC
    # An address for gRPC needs no scheme.
    if place and (protocol != _GRPC or place.split() != [place]):
        check_url(f"{own if exact else shared}_ENDPOINT", place)
    if protocol == _GRPC:
        return _GRPC, place or "http://localhost:4317"
    base = base or f"http://localhost:{_HTTP_PORT}"
    return _HTTP, exact or f"{base.rstrip('/')}/v1/{signal}"


def batching(variables: Mapping[str, str]) -> tuple[int, int]:
    """Return how many spans may wait for their export, and how many go into one."""
    queue_size = int(variables.get("OTEL_BSP_MAX_QUEUE_SIZE", "2048"))
    batch_size = variables.get("OTEL_BSP_MAX_EXPORT_BATCH_SIZE")
    return queue_size, min(512, queue_size) if batch_size is None else int(batch_size)


def is_true(name: str, text: str) -> bool:
    """Return whether a switch is on; raise `InvalidArgument` where it is neither on nor off."""
    if text.strip().lower() not in TRUE | FALSE:
        raise InvalidArgument(f"{name}: expected true or false, got {text!r}")
    return text.strip().lower() in TRUE


def one_of(name: str, value: str, valid: tuple[str, ...]) -> None:
    """Raise `InvalidArgument` unless *value* is one of *valid*."""
    if value not in valid:
        raise InvalidArgument(f"{name}: expected one of {', '.join(valid)}, got {value!r}")


def check_url(name: str, url: str) -> None:
    """Raise `InvalidArgument` unless *url* has a scheme, ``http`` or ``https``, and a host."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits or url.split() != [url]:
        shown = hide_secrets(re.sub(r"\s", "_", url))
        raise InvalidArgument(f"{name}: expected a URL as http://127.0.0.1:4317, got {shown!r}")


def hide_secrets(text: str) -> str:
    """
    Return a text without the users, passwords and queries of the addresses in it.

    >>> hide_secrets("to http://me:p@ss@host:4317/v1?key=k failed, as did me:p@ss@host:4317.")
    'to http://host:4317/v1 failed, as did host:4317.'
    """
    return re.sub(r"\S*[?@]\S*", lambda word: _without_secrets(word[0]), text)


def _without_secrets(address: str) -> str:
    scheme = re.match(r"\W*\w+://", address)
    start = scheme[0] if scheme else ""
    place, _, query = address[len(start) :].partition("?")
    # A password may have a question mark, and a query an @: which of them it is can't be told.
    return start + ("***" if "@" in query else place.rpartition("@")[2])


def _set_for_both(variables: dict[str, str], what: str, value: str) -> None:
    """Set what the exporters of both signals share; their own variables count no more."""
    for signal in ("TRACES_", "METRICS_"):
        variables.pop(f"OTEL_EXPORTER_OTLP_{signal}{what}", None)
    variables[f"OTEL_EXPORTER_OTLP_{what}"] = value


def _check(variables: Mapping[str, str]) -> None:
    """Refuse what the SDK would replace by a default, or what only the first export would show."""
    for name, (low, high, whole) in _NUMBERS.items():
        if name in variables:
            _check_number(name, variables[name], low, high, whole=whole)
    queue_size, batch_size = batching(variables)
    if batch_size > queue_size:
        raise InvalidArgument(
            f"OTEL_BSP_MAX_EXPORT_BATCH_SIZE: expected at most {queue_size}, which is "
            f"OTEL_BSP_MAX_QUEUE_SIZE, got {batch_size}"
        )
    if "OTEL_TRACES_SAMPLER" in variables:
        one_of("OTEL_TRACES_SAMPLER", variables["OTEL_TRACES_SAMPLER"].lower(), _SAMPLERS)
    exemplars = "OTEL_METRICS_EXEMPLAR_FILTER"
    one_of(exemplars, variables.get(exemplars, "trace_based"), _EXEMPLAR_FILTERS)
    for signal in ("", "TRACES_", "METRICS_"):
        name = f"OTEL_EXPORTER_OTLP_{signal}PROTOCOL"
        one_of(name, variables.get(name, _GRPC), (_GRPC, _HTTP))
    is_true(EXPORT_ENABLED, variables.get(EXPORT_ENABLED, ""))


def _check_number(name: str, text: str, low: float, high: float, *, whole: bool) -> None:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high or (whole and not text.isdecimal()):
        kind = "a whole number" if whole else "a number"
        raise InvalidArgument(f"{name}: expected {kind} from {low} to {high}, got {text!r}")


def _port_of(url: str) -> int | None:
    try:
        return urlsplit(url).port
    except ValueError:
        return None
