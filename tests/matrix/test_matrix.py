"""
Nothing is left of any kind of engine with any kind of consumer; see the package for how to read it.

``RX_BACKEND_MATRIX=1000000 python -m pytest tests/matrix -k any_pair`` runs more of them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.matrix.consumers import CONSUMERS
from tests.matrix.engines import ENGINES
from tests.matrix.run import run

ROOT = Path(__file__).parents[2]
REQUESTS = int(os.environ.get("RX_BACKEND_MATRIX", "20000"))

ROWS = pytest.mark.rows(
    "S1", "S2", "S5", "S6", "S7", "S9", "P7", "A1", "A2", "A3", "A4", "A5", "A6", "A7"
)


@ROWS
@pytest.mark.timeout(300 + REQUESTS // 50)
def test_no_pair_of_engine_and_consumer_leaks() -> None:
    """Each pair twice: no task, span, generator, gauge or byte is left, nothing hangs, and stderr stays empty."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.matrix", "--requests", str(REQUESTS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stdout + done.stderr
    assert not done.stderr


@ROWS
@pytest.mark.timeout(120)
@pytest.mark.parametrize("engine", [name for name, kind in ENGINES.items() if kind.is_kept])
def test_only_what_a_library_retains_remains(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else is left of it; it is no part of the other test, where what is kept adds up."""
    # What pytest keeps of the log refers to tracebacks, and so to what they were raised in.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    plan = [(index, engine, consumer) for index, consumer in enumerate(CONSUMERS)]
    loop = asyncio.new_event_loop()
    report = loop.run_until_complete(run(plan, seed=1, size=len(plan), strict=False))
    if report.problems:
        # The loop stays open: closing it would wait for what hangs.
        pytest.fail("\n".join(report.lines("--seed 1")), pytrace=False)
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def test_a_leaking_engine_is_named() -> None:
    """A pair that leaves a task, a generator or a warning is found and named."""
    command = [sys.executable, "-c", LEAKING]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "--engine leaks_a_task --consumer reads_all" in done.stdout
    assert "task left" in done.stdout
    assert "--engine complains --consumer reads_all" in done.stdout
    assert "stderr: a word" in done.stdout
    assert "--engine keeps_its_context --consumer reads_all" in done.stdout
    assert "still alive: the context" in done.stdout
    assert "in_time" not in done.stdout


LEAKING = """
import asyncio, sys
from tests.matrix.engines import ENGINES
from tests.matrix.engines_plain import in_time
from tests.matrix.kinds import engine
from tests.matrix.run import main

kept = []

def leaks_a_task(call):
    kept.append(asyncio.ensure_future(asyncio.sleep(9)))
    return in_time(call)

def complains(call):
    sys.stderr.write("a word")
    return in_time(call)

def keeps_its_context(call):
    kept.append(call.context)
    return in_time(call)

mine = (leaks_a_task, complains, keeps_its_context)
for each in mine:
    engine(name=each.__name__)(each)
wanted = {each.__name__ for each in mine} | {"in_time"}
for name in set(ENGINES) - wanted:
    del ENGINES[name]
sys.exit(main(["--all", "--consumer", "reads_all"]))
"""
