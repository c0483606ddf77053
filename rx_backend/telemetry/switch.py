"""The option ``--otlp`` of the commands."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Generator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rx_backend.telemetry.request_span import EXPORT_ENABLED, TRUE
from rx_backend.telemetry.settings import (
    FALSE,
    SERVICE,
    check_url,
    destination,
    exporter_names,
)
from rx_backend.telemetry.setup import configure

if TYPE_CHECKING:
    from rx_backend.telemetry.providers import Telemetry

__all__ = ("OTLP_VARIABLE", "OtlpSwitch", "add_otlp_flag", "report_telemetry")

OTLP_VARIABLE: Final = "RX_BACKEND_OTLP"
"""The environment variable of the switch."""

_ON: Final = "true"
_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_PROTOCOL: Final = "OTEL_EXPORTER_OTLP_PROTOCOL"
_NAME: Final = f"--otlp or {OTLP_VARIABLE}"


def add_otlp_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--otlp [URL]`` to a command's parser."""
    parser.add_argument(
        "--otlp",
        nargs="?",
        const=_ON,
        metavar="URL",
        help="send traces and metrics to an OTLP receiver; without URL to the one that "
        f"OpenTelemetry's variables name, or localhost:4317 [{OTLP_VARIABLE}]",
    )


class OtlpSwitch:
    """
    Whether a command exports its telemetry, and to which endpoint.

    Args:
        otlp: The flag: ``true``, ``false`` or a URL; None for the value of `OTLP_VARIABLE`.
        environ: The environment.

    Attributes:
        is_on: Whether to export.
        endpoint: The endpoint; None for that of OpenTelemetry's variables.

    Raises:
        InvalidArgument: The flag is none of these, or a variable names an invalid exporter,
            protocol or URL for traces.
    """

    def __init__(self, otlp: str | None, environ: Mapping[str, str]) -> None:
        text = environ.get(OTLP_VARIABLE, "") if otlp is None else otlp
        self.is_on = text.lower() not in FALSE
        self.endpoint = text if self.is_on and text.lower() not in TRUE else None
        if self.endpoint is not None:
            check_url(_NAME, self.endpoint)
        self._runtime_env = self._env_for_runtime(environ) if self.is_on else {}

    def configure(self, role: str = "") -> Telemetry | None:
        """Call `configure` if the switch is on; a *role* extends the service's default name."""
        if not self.is_on:
            return None
        name = f"{SERVICE}-{role}" if role else None
        return configure(endpoint=self.endpoint, service_name=name)

    @contextmanager
    def exported_to_runtime_env(self, environ: MutableMapping[str, str]) -> Generator[None]:
        """
        Have Dynamo's runtime, if created in the block, export its own spans to the same endpoint.

        Without its spans it does not pass on a request's trace. Variables that are set take
        precedence. Afterwards *environ* is restored: for our own requests the sampler decides (row
        P8).
        """
        before = {name: environ.get(name) for name in (EXPORT_ENABLED, _ENDPOINT, _PROTOCOL)}
        environ.update(self._runtime_env)
        try:
            yield
        finally:
            for name, value in before.items():
                environ.pop(name, None)
                if value is not None:
                    environ[name] = value

    def _env_for_runtime(self, environ: Mapping[str, str]) -> dict[str, str]:
        if "otlp" not in exporter_names(environ, "traces")[0]:
            return {}
        protocol, _ = destination(environ, "traces", self.endpoint)
        exported = {EXPORT_ENABLED: environ.get(EXPORT_ENABLED, "1")}
        if self.endpoint is None:
            return {**exported, _PROTOCOL: environ.get(_PROTOCOL, protocol)}
        return {**exported, _ENDPOINT: self.endpoint, _PROTOCOL: protocol}


@contextmanager
def report_telemetry(
    telemetry: Telemetry | None, say: Callable[[str], object]
) -> Generator[Telemetry | None]:
    """Print the destinations of telemetry; at the end shut it down, and print what was lost."""
    if telemetry is None:
        yield None
        return
    say(f"telemetry: {telemetry}")
    with telemetry:
        yield telemetry
    if telemetry.lost:
        say(f"telemetry: {' and '.join(telemetry.lost)} were lost")
