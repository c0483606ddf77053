"""What `rx-backend serve` is told, and what it says when that can't be."""

from __future__ import annotations

import sys

import pytest

from rx_backend import InvalidArgument
from rx_backend.cli import main
from rx_backend.worker.options import FrontendOptions, ServeOptions

ENGINE = "tests.rx_backend.worker.engines:CountingEngine"


def test_a_flag_beats_the_environment_and_that_the_default() -> None:
    """Each option comes from the first of the three that has it."""
    options = ServeOptions.read(
        {"engine": ENGINE, "namespace": "flag", "mode": None},
        {
            "DYN_NAMESPACE": "env",
            "DYN_DISCOVERY_BACKEND": "etcd",
            "DYN_REQUEST_PLANE": "nats",
            "DYN_HTTP_PORT": "9000",
            "DYN_MIGRATION_LIMIT": "0",
            "DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS": "0.5",
            "RX_BACKEND_FRONTEND": "on",
            "RX_BACKEND_COALESCE": "no",
        },
    )
    assert options == ServeOptions(
        engine=ENGINE,
        namespace="flag",
        discovery="etcd",
        request_plane="nats",
        http_port=9000,
        migration_limit=0,
        grace_s=0.5,
        frontend=True,
        coalesce=False,
    )


def test_a_frontend_is_told_by_the_same_names() -> None:
    """Its options are those of a worker with a frontend that are not the worker's."""
    environ = {"DYN_HTTP_HOST": "::1", "DYN_MIGRATION_LIMIT": "5", "DYN_NAMESPACE": "else"}
    options = FrontendOptions.read({"http_port": 9000}, environ)
    assert options == FrontendOptions(http_host="::1", http_port=9000, migration_limit=5)


def test_an_address_may_come_in_one_piece() -> None:
    """An endpoint in Dynamo's long form has all three parts."""
    options = ServeOptions(engine=ENGINE, endpoint="dyn://one.two.three")
    assert options.address == ("one", "two", "three")
    assert ServeOptions(engine=ENGINE).address == ("dynamo", None, "generate")


@pytest.mark.parametrize(
    ("variable", "text", "complaint"),
    [
        ("DYN_HTTP_PORT", "many", "DYN_HTTP_PORT: expected int, got 'many'"),
        ("DYN_HTTP_PORT", "0", "http_port: expected 1 to 65535, got 0"),
        ("RX_BACKEND_FRONTEND", "maybe", "RX_BACKEND_FRONTEND: expected bool, got 'maybe'"),
        ("DYN_DISAGGREGATION_MODE", "both", "mode: expected one of agg, prefill, decode"),
        ("DYN_DISCOVERY_BACKEND", "dns", "discovery: expected one of file, etcd"),
        ("DYN_REQUEST_PLANE", "http", "request_plane: expected one of tcp, nats"),
        ("DYN_GRACEFUL_SHUTDOWN_TIMEOUT", "-1", "drain_s: expected seconds from 0, got -1"),
        ("DYN_ENDPOINT", "dyn://one.two", "endpoint: expected a name or dyn://"),
        ("DYN_MIGRATION_LIMIT", "-1", "migration_limit: expected 0 or more, got -1"),
    ],
)
def test_a_bad_value_is_told_by_name(variable: str, text: str, complaint: str) -> None:
    """The message names what to mend, and what was expected."""
    with pytest.raises(InvalidArgument) as raised:
        ServeOptions.read({"engine": ENGINE}, {variable: text})
    assert raised.value.message.startswith(complaint)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("serve", "no_such_module:Engine"), "no module named 'no_such_module'"),
        (
            ("serve", ENGINE, "--pipeline", "rx_backend:no_such_name"),
            "pipeline rx_backend:no_such_name",
        ),
        (
            ("serve", ENGINE, "--pipeline", "rx_backend:__name__"),
            "pipeline rx_backend:__name__: expected a Pipeline, or a function",
        ),
        (
            ("serve", ENGINE, "--pipeline", "no_such_module:pipeline"),
            "pipeline no_such_module:pipeline: no module named 'no_such_module'",
        ),
        (("serve", "rx_backend:FinishReason"), "engine rx_backend:FinishReason: making it raised"),
        (
            ("serve", ENGINE, "--model-path", "/no/such"),
            "model_path: expected a folder, got '/no/such'",
        ),
        (("serve", ENGINE, "--http-port", "99999"), "http_port: expected 1 to 65535"),
        (("frontend", "--http-port", "99999"), "http_port: expected 1 to 65535"),
    ],
)
def test_what_cannot_be_loaded_ends_the_command(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    complaint: str,
) -> None:
    """One line on stderr, and the exit code of bad usage; nothing is started."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(list(arguments)) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1
