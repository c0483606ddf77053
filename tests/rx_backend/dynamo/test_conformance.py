"""Engines of Dynamo's kind in the conformance kit, and by name on the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rx_backend.cli import main
from rx_backend.dynamo import from_any_engine, from_dynamo_engine
from rx_backend.engines import SampleEngine
from rx_backend.testing import Rule, run_conformance
from tests.engines.broken import DuckEngine
from tests.rx_backend.dynamo import native_engines
from tests.rx_backend.dynamo._runtime import NEEDS
from tests.rx_backend.dynamo.native_engines import BROKEN, GOOD, Counting
from tests.rx_backend.worker._processes import START_S, serve

pytestmark = NEEDS

HERE = native_engines.__name__


@pytest.mark.rows("K1", "E2", "E4", "S6")
@pytest.mark.parametrize("engine", GOOD)
def test_a_correct_dynamo_engine_passes(engine: type[Counting]) -> None:
    """It is checked as it is, and behind its adapter; Dynamo's exceptions count as typed errors."""
    assert run_conformance(engine).ok, str(run_conformance(engine))
    report = run_conformance(lambda: from_dynamo_engine(engine()))
    assert report.ok, str(report)
    assert not report.unchecked


@pytest.mark.rows("K1")
@pytest.mark.parametrize(("engine", "rule"), BROKEN)
def test_a_rule_broken_by_a_dynamo_engine_is_named(engine: type[Counting], rule: Rule) -> None:
    """The report of an engine that breaks one rule names exactly that one."""
    report = run_conformance(engine)
    assert [violation.rule for violation in report.violations] == [rule], str(report)


@pytest.mark.rows("K1")
def test_an_object_that_only_resembles_an_engine_is_named() -> None:
    """An engine without the methods of one is a violation, not a crash of the kit."""
    report = run_conformance(native_engines.NoStart)
    assert [violation.rule for violation in report.violations] == [Rule.START_FAILED]
    assert "NoStart has no method start" in str(report)


def test_our_own_engine_is_returned_unchanged() -> None:
    """Also one that is ours by its methods alone."""
    for ours in (SampleEngine(), DuckEngine(), from_dynamo_engine(Counting())):
        assert from_any_engine(ours) is ours


@pytest.mark.rows("K1")
def test_the_command_accepts_dynamo_engines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their class, and by a function that makes one as Dynamo's programs do."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["conformance", f"{HERE}:Counting"]) == 0
    assert main(["conformance", f"{HERE}:configured"]) == 0
    assert main(["conformance", f"{HERE}:NoTerminal"]) == 1
    assert "FAIL  no_terminal (E3)" in capsys.readouterr().out


@pytest.mark.timeout(90)
def test_a_dynamo_engine_is_served_by_one_command(tmp_path: Path) -> None:
    """The official client gets its tokens from the frontend."""
    with serve(tmp_path, f"{HERE}:configured", "--frontend", "--grace-s", "0") as served:
        served.line("curl -N", START_S)
        with served.client() as client:
            answer = client.chat.completions.create(
                model="from-args", messages=[{"role": "user", "content": "count"}], max_tokens=5
            )
    assert (answer.choices[0].message.content or "").split() == ["0", "1", "2", "3", "4"]
