"""The options of `rx-backend serve` and `frontend`, and the errors that name a wrong one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest

from rx_backend import InvalidArgument
from rx_backend.cli import main
from rx_backend.engines import SampleEngine
from rx_backend.worker import Worker
from rx_backend.worker.options import (
    FrontendOptions,
    ServeOptions,
    add_frontend_options,
    add_serve_options,
)
from rx_backend.worker.serve import health_check_request

ENGINE = "tests.rx_backend.worker.engines:CountingEngine"


def read(*flags: str, **environ: str) -> ServeOptions:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_serve_options(parser, environ)
    return parser.parse_args([ENGINE, *flags], namespace=ServeOptions())


def refused(capsys: pytest.CaptureFixture[str], command: str) -> str:
    """Run a command that is refused before anything is started; give the one line about it."""
    try:
        code = main(command.split())
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("rx-backend")
    assert error.count("\n") == 1
    return error


def test_a_flag_overrides_the_environment() -> None:
    """Each option comes from the first of the three that has it, with the same type."""
    options = read(
        *("--namespace", "flag", "--drain-s", "7", "--no-coalesce"),
        DYN_NAMESPACE="env",
        DYN_DISCOVERY_BACKEND="etcd",
        DYN_HTTP_PORT="9000",
        DYN_MIGRATION_LIMIT="0",
        DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS="0.5",
        RX_BACKEND_FRONTEND="on",
        RX_BACKEND_COALESCE="yes",
        DYN_COMPONENT="",
    )
    assert (options.namespace, options.component, options.mode) == ("flag", None, "agg")
    assert (options.discovery, options.request_plane) == ("etcd", "tcp")
    assert (options.http_host, options.http_port) == ("127.0.0.1", 9000)
    assert (options.migration_limit, options.grace_s, options.drain_s) == (0, 0.5, 7.0)
    assert (options.frontend, options.coalesce) == (True, False)
    assert read(RX_BACKEND_COALESCE="no").coalesce is False
    assert (read().frontend, read().coalesce, read().grace_s) == (False, True, 5.0)


def test_a_frontend_has_the_same_names() -> None:
    """Its options are those of a worker with a frontend that are not the worker's."""
    parser = argparse.ArgumentParser()
    add_frontend_options(parser, {"DYN_HTTP_HOST": "::1", "DYN_MIGRATION_LIMIT": "5"})
    options = parser.parse_args(["--http-port", "9000"], namespace=FrontendOptions())
    assert (options.http_host, options.http_port, options.migration_limit) == ("::1", 9000, 5)


def test_an_address_may_be_given_as_one_url() -> None:
    """An endpoint in Dynamo's long form has all three parts, and none may be given beside it."""
    assert read("--endpoint", "dyn://one.two.three").address == ("one", "two", "three")
    assert read().address == ("dynamo", None, "generate")
    read("--endpoint", "dyn://one.two.three", DYN_NAMESPACE="other").check()
    with pytest.raises(InvalidArgument, match="--component, --namespace: contradicts"):
        read("--endpoint", "dyn://a.b.c", "--namespace", "a", "--component", "b").check()


@pytest.mark.parametrize("flag", ["--http-port", "--http-host", "--migration-limit"])
def test_a_flag_without_effect_is_rejected(flag: str) -> None:
    """A worker without a frontend listens nowhere; in the environment it may be for others."""
    with pytest.raises(InvalidArgument, match=f"{flag}: no effect without --frontend"):
        read(flag, "1").check()
    read(flag, "1", "--frontend").check()
    read(DYN_HTTP_PORT="1").check()


@pytest.mark.parametrize(
    ("flag", "variable", "text", "expected"),
    [
        ("--http-port", "DYN_HTTP_PORT", "many", "a whole number from 1 to 65535"),
        ("--http-port", "DYN_HTTP_PORT", "0", "a whole number from 1 to 65535"),
        ("--http-port", "DYN_HTTP_PORT", "65536", "a whole number from 1 to 65535"),
        ("--mode", "DYN_DISAGGREGATION_MODE", "both", "one of agg, prefill, decode"),
        ("--discovery", "DYN_DISCOVERY_BACKEND", "dns", "one of file, etcd"),
        ("--request-plane", "DYN_REQUEST_PLANE", "http", "one of tcp, nats"),
        ("--drain-s", "DYN_GRACEFUL_SHUTDOWN_TIMEOUT", "-1", "seconds from 0"),
        ("--grace-s", "DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS", "inf", "seconds from 0"),
        ("--endpoint", "DYN_ENDPOINT", "dyn://one.two", "a name or dyn://"),
        ("--endpoint", "DYN_ENDPOINT", "dyn://a..b", "a name or dyn://"),
        ("--endpoint", "DYN_ENDPOINT", "dyn://a.b.", "a name or dyn://"),
        ("--endpoint", "DYN_ENDPOINT", "a.b", "a name or dyn://"),
        ("--namespace", "DYN_NAMESPACE", "a.b", "a name without dots"),
        ("--namespace", "DYN_NAMESPACE", "a\udc80", "a name without dots"),
        ("--component", "DYN_COMPONENT", "../../x", "a name without dots"),
        ("--endpoint", "DYN_ENDPOINT", "http://one.two.three", "a name or dyn://"),
        ("--migration-limit", "DYN_MIGRATION_LIMIT", "-1", "a whole number from 0"),
        ("--frontend", "RX_BACKEND_FRONTEND", "maybe", "true or false"),
    ],
)
def test_a_bad_value_is_named(flag: str, variable: str, text: str, expected: str) -> None:
    """The message has the flag, what was expected, and the variable where the value is from one."""
    with pytest.raises(argparse.ArgumentError) as raised:
        read(**{variable: text})
    assert flag in str(raised.value)
    assert f"expected {expected}" in str(raised.value)
    assert str(raised.value).endswith(f"got {text!r} from {variable}")
    if flag != "--frontend":
        with pytest.raises(argparse.ArgumentError, match=f"{flag}: expected {expected}") as raised:
            read(f"{flag}={text}")
        assert variable not in str(raised.value)


def test_an_empty_part_of_an_address_is_rejected() -> None:
    """An empty flag is a mistake, where an empty variable is none at all."""
    for flag in ("--namespace", "--component", "--endpoint"):
        with pytest.raises(argparse.ArgumentError, match=f"{flag}: expected a name"):
            read(f"{flag}=")


@pytest.mark.parametrize(
    ("name", "value"),
    [("namespace", "a.b"), ("component", 5), ("endpoint", ""), ("probe", "ping")],
)
def test_a_worker_checks_its_arguments_too(name: str, value: object) -> None:
    """Before there is a runtime, whose error would not be a typed one."""
    arguments: dict[str, Any] = {name: value}
    with pytest.raises(InvalidArgument, match=f"{name}: expected a"):
        Worker(SampleEngine(), **arguments)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("no_such_module:Engine", "no module named 'no_such_module'"),
        (f"{ENGINE} --pipeline rx_backend:no_such_name", "pipeline rx_backend:no_such_name"),
        (f"{ENGINE} --pipeline rx_backend:__name__", "expected a Pipeline, or a function"),
        (f"{ENGINE} --pipeline no_such:pipeline", "no_such:pipeline: no module named 'no_such'"),
        (f"{ENGINE} --engine-arg size=1", "CountingEngine: no argument size; it takes none"),
        (f"{ENGINE} --size 1", "--size 1; pass an engine's own arguments as --engine-arg"),
        (f"{ENGINE} -- --size 1", "expected a method from_args for arguments after --: --size 1"),
        (f"{ENGINE} --tokenizer .", "tokenizer: expected a folder with config.json"),
        (f"{ENGINE} --tokenizer . --model-path .", "--model-path: no effect"),
        (f"{ENGINE} --tool-call-parser guess", "tool_call_parser: expected one of"),
        (f"{ENGINE} --reasoning-parser guess", "reasoning_parser: expected one of"),
        (f"{ENGINE} --model-path /no/such", "config.json or tokenizer.json, got '/no/such'"),
        (f"{ENGINE} --model-path .", "model_path: expected a folder with config.json"),
        (f"{ENGINE} --http-port 80", "--http-port: no effect without --frontend"),
        (f"{ENGINE} --http-port 99999", "argument --http-port: expected a whole number"),
        (f"{ENGINE} --otlp nowhere", "otlp"),
        ("dynamo tests.rx_backend.worker.nowhere", "no module named"),
        ("dynamo ..vllm", "module: '..vllm' can't be imported: no package specified"),
        ("dynamo json.tool.x", "no module named 'json.tool.x'"),
        ("dynamo --pipeline nowhere:x json", "no module named 'nowhere'"),
        ("dynamo", "required: module"),
        ("frontend -- --size 1", "--: this command takes no engine arguments"),
    ],
)
def test_an_unusable_setting_ends_the_command(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    complaint: str,
) -> None:
    """One line on stderr, and the exit code of bad usage; nothing is started."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    is_command = arguments.startswith(("dynamo", "frontend"))
    assert complaint in refused(capsys, arguments if is_command else f"serve {arguments}")


def test_the_health_check_s_request_may_be_in_a_file(tmp_path: Path) -> None:
    """As for Dynamo's own workers; an empty variable is none."""
    file = tmp_path / "request.json"
    file.write_text('{"token_ids": [1, 2]}')
    variable = "DYN_HEALTH_CHECK_PAYLOAD"
    assert health_check_request({variable: f"@{file}"}) == {"token_ids": [1, 2]}
    assert health_check_request({variable: ""}) is None


SERVING = (f"serve {ENGINE}", "frontend")
EXPORTING = (*SERVING, "dynamo json.tool", "run --limit 1 --no-plot")
BAD_VARIABLES: list[tuple[str, str, tuple[str, ...], str]] = [
    ("RX_BACKEND_OTLP", "nowhere", EXPORTING, "expected a URL such as http://127.0.0.1:4317"),
    ("OTEL_TRACES_EXPORTER", "oltp", EXPORTING, "expected console, none, otlp"),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", "smoke", EXPORTING, "expected one of grpc, http/protobuf"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://", EXPORTING, "expected a URL such as http://"),
    ("OTEL_EXPORT_ENABLED", "maybe", EXPORTING, "expected true or false, got 'maybe'"),
    ("DYN_LOGGING_JSONL", "maybe", SERVING, "expected true or false, got 'maybe'"),
    ("DYN_TCP_RESPONSE_STREAM_PORT", "9" * 5000, SERVING, "expected a port from 0 to 65535"),
    ("DYN_TCP_RPC_PORT", "80a", SERVING[:1], "expected a port from 0 to 65535, got '80a'"),
    ("DYN_SYSTEM_PORT", "40000", SERVING, "expected a port from 0 to 32767, got '40000'"),
    ("DYN_EVENT_PLANE", "kafka", SERVING, "expected nats or zmq, got 'kafka'"),
    ("DYN_HTTP_PORT", "many", SERVING, "expected a whole number from 1 to 65535"),
    ("DYN_HEALTH_CHECK_PAYLOAD", "[1]", SERVING[:1], "expected a JSON object, or @ and the path"),
    (
        "DYN_HEALTH_CHECK_PAYLOAD",
        "@none",
        SERVING[:1],
        "of a file that contains one: [Errno 2] No such file",
    ),
]


@pytest.mark.parametrize(
    ("command", "variable", "text", "complaint"),
    [
        pytest.param(command, variable, text, complaint, id=f"{command.split()[0]}-{variable}")
        for variable, text, commands, complaint in BAD_VARIABLES
        for command in commands
    ],
)
def test_a_variable_that_cannot_be_used_ends_each_command_alike(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    command: str,
    variable: str,
    text: str,
    complaint: str,
) -> None:
    """As a bad option does: one line that names it, and exit code 2; no engine is started."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    if variable.startswith("OTEL_"):
        monkeypatch.setenv("RX_BACKEND_OTLP", "true")
    monkeypatch.setenv(variable, text)
    monkeypatch.chdir(tmp_path)
    error = refused(capsys, command)
    assert variable in error
    assert complaint in error


@pytest.mark.parametrize("command", [*SERVING, "dynamo json.tool"])
def test_a_missing_runtime_ends_each_command_alike(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """With the command that installs it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "dynamo._core", None)
    assert "pip install 'rx-backend[dynamo]'" in refused(capsys, command)
