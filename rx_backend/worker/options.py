"""What ``rx-backend serve`` and ``rx-backend frontend`` are told: by flags, environment, default."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from rx_backend.disagg import DisaggregationMode
from rx_backend.errors import InvalidArgument
from rx_backend.telemetry.switch import OtlpSwitch, add_otlp_flag
from rx_backend.worker.shutdown import ShutdownTimes

__all__ = ("FrontendOptions", "ServeOptions")

_TRUE, _FALSE = {"1", "true", "on", "yes"}, {"0", "false", "off", "no", ""}
_DISCOVERY = ("file", "etcd", "mem", "kubernetes")
_PLANES = ("tcp", "nats")

# The environment's name of each option: Dynamo's where it has one.
_VARIABLES = {
    "mode": "DYN_DISAGGREGATION_MODE",
    "namespace": "DYN_NAMESPACE",
    "component": "DYN_COMPONENT",
    "endpoint": "DYN_ENDPOINT",
    "pipeline": "RX_BACKEND_PIPELINE",
    "discovery": "DYN_DISCOVERY_BACKEND",
    "request_plane": "DYN_REQUEST_PLANE",
    "model_path": "DYN_MODEL_PATH",
    "frontend": "RX_BACKEND_FRONTEND",
    "http_host": "DYN_HTTP_HOST",
    "http_port": "DYN_HTTP_PORT",
    "migration_limit": "DYN_MIGRATION_LIMIT",
    "coalesce": "RX_BACKEND_COALESCE",
    "grace_s": "DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS",
    "drain_s": "DYN_GRACEFUL_SHUTDOWN_TIMEOUT",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendOptions:
    """
    Where to serve the OpenAI API, and for which workers.

    Attributes:
        discovery: How workers find each other.
        request_plane: How requests travel.
        http_host: Where the frontend listens.
        http_port: Its port.
        migration_limit: How often a request moves on to another worker when its own is lost.
        otlp: Where traces and metrics go: a URL, ``true`` for where OpenTelemetry's variables say, or
            ``false``; None for what ``RX_BACKEND_OTLP`` says. Of a frontend alone, those of the
            runtime.

    Raises:
        InvalidArgument: A value is none of those that are possible; the message names it.
    """

    discovery: str = "file"
    request_plane: str = "tcp"
    http_host: str = "127.0.0.1"
    http_port: int = 8000
    migration_limit: int = 3
    otlp: str | None = None

    def __post_init__(self) -> None:
        _one_of("discovery", self.discovery, _DISCOVERY)
        _one_of("request_plane", self.request_plane, _PLANES)
        if not 0 < self.http_port < 65536:
            raise InvalidArgument(f"http_port: expected 1 to 65535, got {self.http_port}")
        if self.otlp is not None:
            OtlpSwitch(self.otlp, {})
        if not 0 <= self.migration_limit < 2**32:
            raise InvalidArgument(
                f"migration_limit: expected 0 or more, got {self.migration_limit}"
            )

    @classmethod
    def read(cls, given: Mapping[str, Any], environ: Mapping[str, str]) -> Self:
        """
        Put together what flags gave, else the environment, else the defaults.

        Raises:
            InvalidArgument: A value does not fit; the message names the flag's or variable's.

        >>> FrontendOptions.read({}, {"DYN_HTTP_PORT": "8080"}).http_port
        8080
        """
        values = {name: value for name, value in given.items() if value is not None}
        for field in fields(cls):
            variable = _VARIABLES.get(field.name)
            text = environ.get(variable) if variable else None
            if variable and text and field.name not in values:
                values[field.name] = _parse(variable, text, str(field.type))
        return cls(**values)

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Add the flags to a command's parser."""
        add = _adder(parser)
        add("discovery", "how workers find each other (file)", choices=_DISCOVERY)
        add("request_plane", "how requests travel (tcp)", choices=_PLANES)
        add("http_host", "where the frontend listens (127.0.0.1)")
        add("http_port", "its port (8000)", type=int)
        add(
            "migration_limit",
            "how often a request moves on when its worker is lost (3)",
            type=int,
            metavar="N",
        )
        add_otlp_flag(parser)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions(FrontendOptions):
    """
    What to serve, and where.

    Attributes:
        engine: ``module:Engine``, what makes the engine.
        mode: The worker's role: ``agg``, ``prefill`` or ``decode``.
        namespace: First part of the worker's address.
        component: Second part; decided by the mode when None.
        endpoint: Third part, or all three as ``dyn://namespace.component.endpoint``.
        pipeline: ``module:name`` of a pipeline, or of a function from a request's scope to one; the
            standard one when None.
        model_path: Folder with the tokenizer; see :class:`rx_backend.worker.Worker`.
        frontend: Whether to serve the OpenAI API too.
        coalesce: Whether chunks that wait anyway cross into the runtime together.
        grace_s: Between leaving discovery and refusing requests, in s.
        drain_s: For the requests in flight to end by themselves, in s.

    Raises:
        InvalidArgument: A value is none of those that are possible; the message names it.
    """

    engine: str
    mode: str = "agg"
    namespace: str = "dynamo"
    component: str | None = None
    endpoint: str = "generate"
    pipeline: str | None = None
    model_path: str | None = None
    frontend: bool = False
    coalesce: bool = True
    grace_s: float = 5.0
    drain_s: float = 30.0

    def __post_init__(self) -> None:
        # A class with slots is made twice, and `super()` without arguments knows the first.
        FrontendOptions.__post_init__(self)
        DisaggregationMode.parse(self.mode)
        ShutdownTimes(grace_s=self.grace_s, drain_s=self.drain_s)
        if "://" in self.endpoint and len(self.endpoint.partition("://")[2].split(".")) != 3:
            raise InvalidArgument(
                f"endpoint: expected a name or dyn://namespace.component.endpoint, "
                f"got {self.endpoint!r}"
            )

    @property
    def address(self) -> tuple[str, str | None, str]:
        """Namespace, component and endpoint."""
        if "://" in self.endpoint:
            namespace, component, endpoint = self.endpoint.partition("://")[2].split(".")
            return namespace, component, endpoint
        return self.namespace, self.component, self.endpoint

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Add the flags to the command's parser."""
        parser.add_argument(
            "engine", metavar="module:Engine", help="what makes the engine when called"
        )
        add = _adder(parser)
        switch = argparse.BooleanOptionalAction
        add("mode", "role of the worker (agg)", choices=tuple(DisaggregationMode))
        add("namespace", "first part of its address (dynamo)")
        add("component", "second part (backend; prefill in that mode)")
        add("endpoint", "third part, or dyn:// and all three (generate)")
        add(
            "pipeline",
            "the pipeline, or a function from a request's scope to one",
            metavar="module:name",
        )
        add("model_path", "folder with the tokenizer (a made-up one)", metavar="DIR")
        add("coalesce", "let waiting chunks travel together (yes)", action=switch, default=None)
        add("grace_s", "from leaving discovery to refusing requests (5)", type=float, metavar="S")
        add("drain_s", "for requests in flight to end by themselves (30)", type=float, metavar="S")
        add("frontend", "serve the OpenAI API too (no)", action=switch, default=None)
        FrontendOptions.add_arguments(parser)


def _adder(parser: argparse.ArgumentParser) -> Callable[..., None]:
    """Return a function that adds an option's flag, with the name of its variable in the help."""

    def add(name: str, help: str, **more: Any) -> None:
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, help=f"{help} [{_VARIABLES[name]}]", **more)

    return add


def _parse(variable: str, text: str, type_name: str) -> Any:
    try:
        if type_name == "bool":
            return _boolean(text)
        if type_name in {"int", "float"}:
            return int(text) if type_name == "int" else float(text)
    except ValueError:
        raise InvalidArgument(f"{variable}: expected {type_name}, got {text!r}") from None
    return text


def _boolean(text: str) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        raise ValueError(text)
    return text.lower() in _TRUE


def _one_of(name: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise InvalidArgument(f"{name}: expected one of {', '.join(valid)}, got {value!r}")
