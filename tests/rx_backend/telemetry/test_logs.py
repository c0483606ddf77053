"""Where the log goes: configure_logs(), and what the application has set up itself."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys

import pytest

from rx_backend.errors import InvalidArgument
from rx_backend.telemetry import configure_logs
from tests.forks import run

LOGGER = "rx_backend.requests"


def test_existing_log_handlers_are_kept() -> None:
    """Handlers of standard logging, as pytest's, stay alone."""
    before = logging.root.handlers[:], logging.getLogger("rx_backend").level
    with configure_logs():
        assert (logging.root.handlers, logging.getLogger("rx_backend").level) == before


@pytest.mark.parametrize(
    ("variable", "text"), [("DYN_LOGGING_JSONL", "perhaps"), ("DYN_LOGGING_CONSOLE_FORMAT", "xml")]
)
def test_a_bad_value_is_reported(variable: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the variable."""
    monkeypatch.setenv(variable, text)
    with pytest.raises(InvalidArgument, match=variable):
        configure_logs()


def child(way: str, **environ: str) -> list[str]:
    """Run a process of requests; the lines of its stderr."""
    module = "tests.rx_backend.telemetry.logging_child"
    done = run([module], [module, way], env={"PATH": "", **environ})
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def test_json_lines_have_the_fields() -> None:
    """Each line is an object that Dynamo's readers and OpenTelemetry's understand."""
    lines = child("everything", DYN_LOGGING_JSONL="1")
    ended, engines, failed = map(json.loads, lines)
    assert [line["level"] for line in (ended, engines, failed)] == ["INFO", "WARN", "WARN"]
    assert (ended["target"], ended["message"]) == (LOGGER, "request ended")
    assert (ended["request_id"], ended["finish_reason"]) == ("r1", "length")
    assert ended["time"].endswith("Z")
    assert len(ended["trace_id"]) == 32
    assert (engines["target"], engines["message"]) == ("an_engine", "a line of an engine's")
    assert (failed["error_type"], failed["output_tokens"]) == ("Disconnected", 1)
    ids = ("trace_id", "span_id", "trace_flags")
    assert [engines[name] for name in ids] == [failed[name] for name in ids]


ENGINES = "a line of an engine's"
FIELDS = r"request_id=r\d trace_id=\w{32} .*"


@pytest.mark.parametrize(
    ("way", "environ", "lines"),
    [
        # Where nothing is configured, warnings are Python's last resort.
        ("nothing", {}, [ENGINES, f"request failed {FIELDS}"]),
        # `DYN_LOG` sets the level; what it says of targets is for the runtime.
        (
            "ours",
            {"DYN_LOG": "tower::x=error, INFO,mm_routing=debug"},
            [
                rf".*\[info     \] request ended .* \[{LOGGER}\] {FIELDS}",
                ENGINES,
                r".*\[warn     \] request failed .*",
            ],
        ),
        (
            "ours",
            {"DYN_LOG": "warn", "DYN_LOGGING_CONSOLE_FORMAT": "jsonl"},
            [ENGINES, '{.*"message": "request failed".*}'],
        ),
        ("ours", {"DYN_LOG": "off"}, [ENGINES]),
        # Standard logging that is set up is used, and nothing is written twice.
        (
            "stdlib",
            {},
            [rf"{LOGGER}\|request ended {FIELDS}", ".*", rf"{LOGGER}\|request failed .*"],
        ),
        # A structlog that is set up gets what it renders for standard logging.
        (
            "with_structlog",
            {},
            [
                '.*"event": "request ended".*"request_id": "r1".*',
                ".*",
                '.*"event": "request failed".*',
            ],
        ),
    ],
)
def test_where_the_log_goes(way: str, environ: dict[str, str], lines: list[str]) -> None:
    """To stderr where it is configured and nothing else is; else to what the application has set up."""
    written = child(way, **environ)
    assert len(written) == len(lines), written
    for line, pattern in zip(written, lines, strict=True):
        assert re.fullmatch(pattern, line), line


def test_importing_configures_nothing() -> None:
    """Neither structlog nor any logger of the standard library is touched."""
    code = """
import logging
def state():
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    return {
        (one.name, one.level, one.propagate, one.disabled, *one.handlers, *one.filters)
        for one in loggers
        if isinstance(one, logging.Logger)
    }
import rx_backend, rx_backend.telemetry, rx_backend.recording, rx_backend.failover, structlog
touched = {one for one in state() if one[1:] != (0, True, False)}
print(sorted(touched), structlog.is_configured())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[('root', 30, True, False)] False\n", "")
