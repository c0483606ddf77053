"""The commands' switch `--otlp`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rx_backend.cli import main
from rx_backend.errors import InvalidArgument
from rx_backend.telemetry.switch import OTLP_VARIABLE, OtlpSwitch
from tests.otlp.receiver import Receiver
from tests.rx_backend.telemetry._receivers import refusing

URL = "http://127.0.0.1:4318"


@pytest.mark.parametrize(
    ("otlp", "environ", "is_on", "endpoint"),
    [
        (None, {}, False, None),
        ("true", {}, True, None),
        (URL, {OTLP_VARIABLE: "http://other:1"}, True, URL),
        ("false", {OTLP_VARIABLE: URL}, False, None),
        (None, {OTLP_VARIABLE: URL}, True, URL),
        (None, {OTLP_VARIABLE: "1"}, True, None),
        (None, {OTLP_VARIABLE: "off"}, False, None),
    ],
)
def test_the_flag_beats_the_variable(
    otlp: str | None, environ: dict[str, str], is_on: bool, endpoint: str | None
) -> None:
    """Either may be a switch or a URL."""
    switch = OtlpSwitch(otlp, environ)
    assert (switch.is_on, switch.endpoint) == (is_on, endpoint)


@pytest.mark.parametrize(
    ("otlp", "environ", "lent"),
    [
        (None, {}, {}),
        (URL, {"OTEL_SDK_DISABLED": "true"}, {}),
        (URL, {"OTEL_TRACES_EXPORTER": "console"}, {}),
        (
            "true",
            {"OTEL_EXPORTER_OTLP_ENDPOINT": URL},
            {"OTEL_EXPORT_ENABLED": "1", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
        ),
        (
            URL,
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://other:1", "OTEL_EXPORT_ENABLED": "true"},
            {"OTEL_EXPORTER_OTLP_ENDPOINT": URL, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
        ),
    ],
)
def test_the_runtime_exports_to_the_same_place(
    otlp: str | None, environ: dict[str, str], lent: dict[str, str]
) -> None:
    """It is told through its variables, where telemetry is on; afterwards they are as before."""
    after = dict(environ)
    with OtlpSwitch(otlp, environ).lent_to_runtime(after):
        assert after == {**environ, **lent}
    assert after == environ


def test_what_is_no_address_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """An engine's name behind the flag is taken for an address, and the message shows it."""
    with pytest.raises(InvalidArgument, match="--otlp or RX_BACKEND_OTLP: expected a URL"):
        OtlpSwitch(None, {OTLP_VARIABLE: "localhost"})
    assert main(["run", "--synthetic", "--limit", "1", "--otlp", "module:Engine"]) == 2
    assert "got 'module:Engine'" in capsys.readouterr().err


def test_a_run_is_exported(receiver: Receiver, tmp_path: Path) -> None:
    """Each request is a span at the receiver and a line of the file; latencies are the replay's."""
    out = _run(tmp_path, "--otlp", receiver.grpc)
    assert f"telemetry: traces: OTLP over grpc to {receiver.grpc}" in out
    assert "were lost" not in out
    lines = (tmp_path / "spans.jsonl").read_text().splitlines()
    ids = {json.loads(line)["span_id"] for line in lines}
    assert len(ids) == 12
    assert {span.span_id for span in receiver.named("engine.generate")} == ids
    (first,) = receiver.points_of("gen_ai.server.time_to_first_token")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert first.count == summary["completed"]


def test_a_run_without_a_receiver_says_what_was_lost(tmp_path: Path) -> None:
    """The replay is the same, and its files are there."""
    with refusing() as address:
        out = _run(
            tmp_path,
            *("--no-spans", "--otlp", address),
            OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
            OTEL_METRICS_EXPORTER="none",
            OTEL_EXPORTER_OTLP_TIMEOUT="0.2",
        )
    assert "telemetry: 12 spans and 0 metric points were lost" in out
    assert (tmp_path / "summary.json").exists()


def _run(folder: Path, *flags: str, **environ: str) -> str:
    arguments = ["run", "--synthetic", "--limit", "12", "--no-plot", "--out", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "rx_backend.cli", *arguments, *flags],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=25,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
