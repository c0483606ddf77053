"""What ``configure()`` is told: by arguments, by the environment, by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, Self

from rx_backend.errors import InvalidArgument
from rx_backend.telemetry.environment import Environment, check_url, one_of, port_of
from rx_backend.telemetry.request_span import EXPORT_ENABLED

__all__ = ("Protocol", "Settings", "Signal", "SignalSettings")

Signal = Literal["traces", "metrics"]
Protocol = Literal["grpc", "http/protobuf"]

_GRPC: Final = "grpc"
_HTTP: Final = "http/protobuf"
_EXPORTERS: Final = {
    "traces": ("otlp", "console", "none"),
    "metrics": ("otlp", "console", "prometheus", "none"),
}
_SAMPLERS = (
    *("always_on", "always_off", "traceidratio"),
    *("parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio"),
)
_PORT_OF_HTTP = 4318
_QUEUE_SIZE, _BATCH_SIZE = 2048, 512


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalSettings:
    """
    Where one signal goes.

    Attributes:
        exporters: Of ``otlp``, ``console`` and ``prometheus``; empty where the signal is off.
        off: Why it is off; empty where it is on.
        protocol: What OTLP travels by.
        endpoint: Where OTLP goes; for ``http/protobuf`` with the signal's path.
    """

    exporters: tuple[str, ...]
    off: str
    protocol: Protocol
    endpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """
    What to install, checked before anything is installed.

    The SDK and its exporters read for themselves what is not here, such as headers, certificates,
    timeouts, samplers and span limits.

    Attributes:
        service_name: The service's name where the code gives one.
        traces: Where spans go.
        metrics: Where metrics go.
        sample_ratio: Part of the traces to keep, as Dynamo's variable says it; None: the SDK reads
            ``OTEL_TRACES_SAMPLER``.
        queue_size: Most finished spans that wait for their export.
        batch_size: Most of them in one export.
        prometheus_host: Where the Prometheus endpoint listens.
        prometheus_port: Its port; 0 for any that is free.
    """

    service_name: str | None
    traces: SignalSettings
    metrics: SignalSettings
    sample_ratio: float | None
    queue_size: int
    batch_size: int
    prometheus_host: str
    prometheus_port: int

    @classmethod
    def read(
        cls,
        environ: Mapping[str, str],
        *,
        service_name: str | None = None,
        endpoint: str | None = None,
        protocol: str | None = None,
        traces: bool | None = None,
        metrics: bool | None = None,
        prometheus_port: int | None = None,
    ) -> Self:
        """
        Put the arguments and *environ* together; arguments win, but for the two off switches.

        Raises:
            InvalidArgument: A value does not fit; the message names the argument or the variable.

        >>> Settings.read({}, endpoint="http://127.0.0.1:4318").traces.endpoint
        'http://127.0.0.1:4318/v1/traces'
        >>> Settings.read({"OTEL_SDK_DISABLED": "true"}).traces.off
        'off by OTEL_SDK_DISABLED'
        """
        variables = Environment(environ)
        _check_what_the_sdk_reads(variables)
        if endpoint is not None:
            check_url("endpoint", endpoint)
        if protocol is not None:
            one_of("protocol", protocol, (_GRPC, _HTTP))
        if prometheus_port is not None:
            if metrics is False:
                raise InvalidArgument("prometheus_port: expected none where metrics is False")
            if not 0 <= prometheus_port < 65536:
                raise InvalidArgument(
                    f"prometheus_port: expected 0 to 65535, got {prometheus_port}"
                )
        queue_size = variables.whole("OTEL_BSP_MAX_QUEUE_SIZE", _QUEUE_SIZE)
        batch_size = variables.whole(
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", min(_BATCH_SIZE, queue_size), high=queue_size
        )
        port = variables.whole("OTEL_EXPORTER_PROMETHEUS_PORT", 9464, low=0, high=65535)
        return cls(
            service_name=service_name or None,
            traces=_signal(variables, "traces", traces, endpoint, protocol),
            metrics=_signal(
                variables,
                "metrics",
                metrics,
                endpoint,
                protocol,
                prometheus=prometheus_port is not None,
            ),
            sample_ratio=_sample_ratio(variables),
            queue_size=queue_size,
            batch_size=batch_size,
            prometheus_host=variables.text("OTEL_EXPORTER_PROMETHEUS_HOST") or "localhost",
            prometheus_port=port if prometheus_port is None else prometheus_port,
        )


def _check_what_the_sdk_reads(variables: Environment) -> None:
    """Refuse what the SDK would silently take for something else, or stumble over later."""
    variables.whole("OTEL_BSP_SCHEDULE_DELAY", 1)
    for name in (
        "OTEL_METRIC_EXPORT_INTERVAL",
        "OTEL_METRIC_EXPORT_TIMEOUT",
        "OTEL_EXPORTER_OTLP_TIMEOUT",
        "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
        "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT",
    ):
        variables.check_positive(name)


def _signal(
    variables: Environment,
    signal: Signal,
    wanted: bool | None,
    endpoint: str | None,
    protocol: str | None,
    *,
    prometheus: bool = False,
) -> SignalSettings:
    exporters = _exporters(variables, signal, wanted, prometheus=prometheus)
    off = "" if exporters else f"off by OTEL_{signal.upper()}_EXPORTER"
    if wanted is False:
        exporters, off = (), f"off by {signal}=False"
    if variables.switch(EXPORT_ENABLED) is False:
        # What others come and fetch is not sent anywhere.
        exporters = tuple(name for name in exporters if name == "prometheus")
        off = off or ("" if exporters else f"off by {EXPORT_ENABLED}")
    if (variables.text("OTEL_SDK_DISABLED") or "").lower() == "true":
        exporters, off = (), "off by OTEL_SDK_DISABLED"
    used, place = _place(variables, signal, endpoint, protocol)
    return SignalSettings(exporters=exporters, off=off, protocol=used, endpoint=place)


def _exporters(
    variables: Environment, signal: Signal, wanted: bool | None, *, prometheus: bool
) -> tuple[str, ...]:
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    names = {name.strip().lower() for name in (variables.text(variable) or "").split(",")} - {""}
    for name in names:
        one_of(variable, name, _EXPORTERS[signal])
    by_default = {"prometheus"} if prometheus else {"otlp"}
    if "none" in names:
        names = by_default if wanted or prometheus else set[str]()
    elif not names:
        names = by_default
    return tuple(sorted(names | {"prometheus"} if prometheus else names))


def _place(
    variables: Environment, signal: Signal, endpoint: str | None, protocol: str | None
) -> tuple[Protocol, str]:
    """Decide how OTLP travels, and where to."""
    own = f"OTEL_EXPORTER_OTLP_{signal.upper()}"
    named = protocol
    variable = variables.first_of(f"{own}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    if named is None and variable is not None:
        named = variables.text(variable) or ""
        one_of(variable, named, (_GRPC, _HTTP))
    exact = None if endpoint else variables.text(f"{own}_ENDPOINT")
    base = endpoint or variables.text("OTEL_EXPORTER_OTLP_ENDPOINT")
    place = exact or base
    if named is None:
        named = _HTTP if place and port_of(place) == _PORT_OF_HTTP else _GRPC
    if named == _GRPC:
        return _GRPC, place or "http://localhost:4317"
    if place and not endpoint:
        check_url(f"{own}_ENDPOINT" if exact else "OTEL_EXPORTER_OTLP_ENDPOINT", place)
    base = base or f"http://localhost:{_PORT_OF_HTTP}"
    return _HTTP, exact or f"{base.rstrip('/')}/v1/{signal}"


def _sample_ratio(variables: Environment) -> float | None:
    """Give Dynamo's ratio, unless the standard variable names a sampler."""
    sampler = variables.text("OTEL_TRACES_SAMPLER")
    if sampler is None:
        return variables.ratio("OTEL_TRACES_SAMPLE_RATIO")
    one_of("OTEL_TRACES_SAMPLER", sampler.lower(), _SAMPLERS)
    if sampler.lower().endswith("ratio"):
        variables.ratio("OTEL_TRACES_SAMPLER_ARG")
    return None
