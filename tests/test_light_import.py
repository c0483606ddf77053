"""Importing the library is cheap: nothing comes along that only some users need."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Exporters and what they bring, plotting and notebooks, the distributed runtime, tests, operators
# that only some use. Not rich:
# structlog imports it by itself where it is installed.
HEAVY = (
    "opentelemetry.exporter",
    "opentelemetry.sdk.trace.export",
    "google.protobuf",
    "grpc",
    "requests",
    "matplotlib",
    "numpy",
    "IPython",
    "ipykernel",
    "nbformat",
    "ddsketch",
    "dynamo",
    "uvloop",
    "hypothesis",
    "pytest",
    "aioreactive",
    "expression",
    "starlette",
    "tokenizers",
)


def imported_by(statement: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}\nimport sys\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "package",
    [
        "operators",
        "rx_backend",
        "rx_backend.recording",
        "rx_backend.pictures",
        "rx_backend.resumable",
    ],
)
def test_import_stays_light(package: str) -> None:
    """No exporter, plotting, notebook or runtime package is imported."""
    modules = imported_by(f"import {package}")
    assert package in modules
    assert [heavy for heavy in HEAVY if heavy in modules] == []


def test_operators_need_only_the_api_of_opentelemetry() -> None:
    """Operators import neither the SDK of OpenTelemetry nor the package above them."""
    modules = imported_by("import operators")
    assert not {"opentelemetry.sdk", "rx_backend"} & modules
