"""The conformance kit: a broken engine for each rule, and reports that say so."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest

from rx_backend import EngineConfig, LLMEngineOutput, PreprocessedRequest, RequestContext
from rx_backend.engines import SampleEngine
from rx_backend.protocols import SamplingOptions, StopConditions
from rx_backend.testing import (
    ConformanceError,
    Rule,
    VirtualTimeLoop,
    check_engine,
    engine_conformance_tests,
    run_conformance,
    run_virtual,
)
from tests.engines import virtual
from tests.engines.broken import BROKEN, GOOD, Chunks, CorrectEngine, SeveralAnswers, broken
from tests.leaks import LeakWatch

# What an engine that hangs leaves is what the kit tells of.
LEFT = "(task|async generator) not"


@pytest.mark.rows("K1", "E1", "E2", "E3", "E4", "E5", "E7")
@pytest.mark.parametrize("engine", [*GOOD, SampleEngine])
def test_a_correct_engine_passes(engine: type[object]) -> None:
    """However it is written, an engine that keeps to the contract has no violation."""
    report = run_conformance(engine)
    assert report.ok, str(report)
    assert not report.unchecked
    report.raise_if_failed()


@pytest.mark.rows("K1", "E1", "E2", "E3", "E4", "E5", "E7", "S8")
@pytest.mark.parametrize(
    ("engine", "rule"), BROKEN, ids=lambda value: getattr(value, "__name__", "")
)
def test_only_the_broken_rule_is_reported(engine: type[CorrectEngine], rule: Rule) -> None:
    """The report of an engine that breaks one rule names exactly that one."""
    report = run_conformance(engine)
    assert [violation.rule for violation in report.violations] == [rule], str(report)
    lines = str(report).splitlines()
    (failed,) = (n for n, line in enumerate(lines) if line.startswith("  FAIL"))
    assert lines[failed].startswith(f"  FAIL  {rule.name.lower()} ({rule.row}): ")
    assert lines[failed + 1].strip() == f"expected: {rule.demand}"
    with pytest.raises(ConformanceError, match=rule.name.lower()):
        report.raise_if_failed()


@pytest.mark.rows("K1")
def test_every_rule_has_an_engine_that_breaks_it() -> None:
    """No rule of the kit is untested."""
    assert {rule for _, rule in BROKEN} == set(Rule)


class BreaksMuch(CorrectEngine):
    model = ""

    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        yield LLMEngineOutput.token(-1)
        yield LLMEngineOutput.stop()
        yield 7

    async def cleanup(self) -> None:
        raise OSError("never works")


@pytest.mark.rows("K1")
def test_all_broken_rules_are_reported_at_once() -> None:
    """The kit continues after the first violation and reports them all, in the order of the rules."""
    report = run_conformance(BreaksMuch)
    assert [str(violation.rule) for violation in report.violations] == [
        "model_name_empty",
        "bad_token_ids",
        "item_after_terminal",
        "no_cancelled_terminal",
        "cleanup_failed",
        "second_cleanup_failed",
        "unstarted_cleanup_failed",
    ]
    assert str(report).splitlines()[0] == "conformance of BreaksMuch"
    assert str(report).splitlines()[-1] == "16 of 23 rules hold"
    violation = report.violation(Rule.CLEANUP_FAILED)
    assert violation is not None
    assert violation.message == "cleanup raised OSError('never works')"
    assert "in cleanup" in violation.detail
    assert report.violation(Rule.START_FAILED) is None


@pytest.mark.rows("K1")
def test_an_engine_that_does_not_start_leaves_rules_unchecked() -> None:
    """What could not be tried is neither held nor broken."""
    report = run_conformance(broken("StartRaises"))
    assert Rule.NO_CHUNK in report.unchecked
    assert Rule.CLEANUP_FAILED not in report.unchecked
    assert "no_chunk (E2): not checked" in str(report)
    with pytest.raises(ConformanceError, match="no device") as caught:
        report.raise_if_failed()
    assert caught.value.report is report
    assert "Traceback" in str(caught.value)


@pytest.mark.rows("K1")
def test_an_object_without_an_engine_s_methods_breaks_their_rules() -> None:
    """It is reported, and does not fail the kit."""
    report = run_conformance(object)
    assert [str(violation.rule) for violation in report.violations] == [
        *("start_failed", "cleanup_failed", "second_cleanup_failed", "unstarted_cleanup_failed"),
    ]


def wanting(answers: int) -> PreprocessedRequest:
    """Make a request for several answers."""
    return PreprocessedRequest(
        token_ids=[1],
        stop_conditions=StopConditions(max_tokens=4),
        sampling_options=SamplingOptions(n=answers),
    )


class ContinuesWithinAnAnswer(SeveralAnswers):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        async for chunk in super().chunks(request, context):
            yield chunk
            if chunk.finish_reason is not None and chunk.index == 0:
                yield LLMEngineOutput([9], index=0)


class LosesAnAnswer(SeveralAnswers):
    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        async for chunk in super().chunks(request, context):
            if chunk.finish_reason is None or chunk.index == 0 or context.is_stopped:
                yield chunk


@pytest.mark.rows("K1", "E3", "S8")
@pytest.mark.parametrize(
    ("engine", "rules"),
    [
        (SeveralAnswers, []),
        (ContinuesWithinAnAnswer, [Rule.ITEM_AFTER_TERMINAL]),
        (LosesAnAnswer, [Rule.NO_TERMINAL]),
    ],
)
def test_every_answer_has_its_own_terminal(engine: type[CorrectEngine], rules: list[Rule]) -> None:
    """Asked for two answers, an engine ends each once, and nothing follows within it."""
    report = run_conformance(engine, request=wanting(2))
    assert [violation.rule for violation in report.violations] == rules, str(report)


@pytest.mark.rows("K1")
def test_a_long_answer_is_not_endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream may have as many chunks as tokens were requested, for each answer."""
    monkeypatch.setattr("rx_backend.testing.conformance_stream._MOST_EXTRA", 4)
    report = run_conformance(SeveralAnswers, request=wanting(2))
    assert report.ok, str(report)


@pytest.mark.rows("K1")
@pytest.mark.parametrize("engine", [broken("BlocksTheLoop"), CorrectEngine])
def test_a_blocked_loop_is_seen_on_the_real_clock(engine: type[CorrectEngine]) -> None:
    """There a timer is late; an engine that only waits is not taken for one that blocks."""
    report = run_conformance(engine, virtual=False)
    expected = [] if engine is CorrectEngine else [Rule.LOOP_BLOCKED]
    assert [violation.rule for violation in report.violations] == expected, str(report)


class HoldsOn(CorrectEngine):
    """Swallows every cancellation, forever."""

    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        yield LLMEngineOutput.token(1)
        while True:
            try:
                await asyncio.sleep(60.0)
            except asyncio.CancelledError:
                continue


@pytest.mark.rows("K1")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stuck_engine_does_not_hang_the_kit(leaks: LeakWatch) -> None:
    """Even an engine that swallows its cancellation is reported and abandoned."""
    leaks.allow(LEFT)
    report = run_conformance(HoldsOn)
    rules = {violation.rule for violation in report.violations}
    assert rules == {Rule.NO_TERMINAL, Rule.CANCELLATION_IGNORED, Rule.CLOSE_FAILED}


class LostIsNotCancelled(CorrectEngine):
    async def lost(self) -> str:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(60)
        return ""


@pytest.mark.rows("K1", "E7")
def test_a_lost_that_swallows_its_cancellation_is_reported(leaks: LeakWatch) -> None:
    """A worker would wait for it at its end."""
    leaks.allow(LEFT)
    report = run_conformance(LostIsNotCancelled)
    assert [violation.rule for violation in report.violations] == [Rule.LOST_WHILE_WORKING]


@pytest.mark.rows("K1")
def test_the_kit_runs_in_an_existing_loop() -> None:
    """The asynchronous form does the same, and costs nothing in virtual time."""

    async def main() -> tuple[bool, bool]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        good = await check_engine(CorrectEngine)
        hanging = await check_engine(broken("HangsBeforeItsTerminal"))
        return good.ok, hanging.ok

    assert run_virtual(main()) == (True, False)


@pytest.mark.rows("K1")
def test_a_factory_may_be_asynchronous() -> None:
    """A factory that must be awaited is awaited."""

    async def make() -> CorrectEngine:
        await asyncio.sleep(1.0)
        return CorrectEngine()

    report = run_conformance(make)
    assert report.ok
    assert "make" in report.engine


@pytest.mark.rows("K1")
@virtual
async def test_inside_a_loop_the_error_names_the_asynchronous_form() -> None:
    """The plain form says what to call instead where a loop is running."""
    with pytest.raises(RuntimeError, match="await check_engine"):
        run_conformance(CorrectEngine)


class Threaded(CorrectEngine):
    """Makes its chunks in a thread of its own, as many engines do."""

    async def start(self, worker_id: int) -> EngineConfig:
        self.orders: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self.work, name="step loop")
        self.thread.start()
        return await super().start(worker_id)

    def work(self) -> None:
        while (order := self.orders.get()) is not None:
            time.sleep(0.001)
            order()

    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        loop = asyncio.get_running_loop()
        async for chunk in super().chunks(request, context):
            made = asyncio.Event()
            self.orders.put(partial(loop.call_soon_threadsafe, made.set))
            await made.wait()
            yield chunk

    async def cleanup(self) -> None:
        if hasattr(self, "thread"):
            self.orders.put(None)
            self.thread.join()


@pytest.mark.rows("K1")
def test_an_engine_with_a_thread_of_its_own_is_checked_on_the_real_clock() -> None:
    """In virtual time, which does not wait for it, the report of a failure hints at that."""
    report = run_conformance(Threaded)
    assert not report.ok
    assert str(report).splitlines()[-1] == (
        "hint: the engine has threads of its own (step loop), for which virtual time does not "
        "wait: check it on the real clock (--real, or virtual=False)"
    )
    real = run_conformance(Threaded, virtual=False)
    assert (real.ok, real.hint) == (True, ""), str(real)


class Waiting(CorrectEngine):
    """Waits for what virtual time does not wait for, and leaves no thread to be seen."""

    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        await context.stopped()
        yield LLMEngineOutput.cancelled()


@pytest.mark.rows("K1")
def test_a_stream_that_stalls_in_virtual_time_hints_at_the_real_clock() -> None:
    """Also where no thread was seen, as one that ends with its request."""
    report = run_conformance(Waiting)
    assert not report.ok
    assert report.hint == (
        "virtual time waits for no thread, process or network; if the engine does, check it on the "
        "real clock (--real, or virtual=False)"
    )
    real = run_conformance(Waiting, virtual=False, stream_timeout_s=0.05)
    assert (real.ok, real.hint) == (False, "")


class Demanding(CorrectEngine):
    """Notes what it is asked for."""

    asked: list[tuple[list[int], int | None]]

    def __init__(self) -> None:
        Demanding.asked = []

    async def chunks(self, request: PreprocessedRequest, context: RequestContext) -> Chunks:
        self.asked.append((request.token_ids, request.stop_conditions.max_tokens))
        request.token_ids = []
        async for chunk in super().chunks(request, context):
            yield chunk


@pytest.mark.rows("K1")
def test_the_request_can_be_chosen() -> None:
    """Each stream gets its own copy of the request, and those to be stopped ask for more."""
    assert run_conformance(Demanding, request=PreprocessedRequest(token_ids=[5])).ok
    assert Demanding.asked == [([5], None)] * 9 + [([5], 4096)] * 2


@pytest.mark.rows("K1")
def test_the_limits_can_be_chosen() -> None:
    """A slow engine passes when it is given the time, a quick one fails when it is not."""
    assert run_conformance(broken("SeesTheStopTooLate"), timeout_s=3.0).ok
    report = run_conformance(CorrectEngine, stream_timeout_s=0.05)
    assert report.violation(Rule.NO_TERMINAL) is not None


@pytest.mark.rows("K1")
@virtual
async def test_a_cancelled_check_leaks_nothing() -> None:
    """Cancelling the check cancels the stream it plays."""
    task = asyncio.create_task(check_engine(broken("HangsBeforeItsTerminal")))
    await asyncio.sleep(1.0)
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(1.0)
    assert task.cancelled()
    assert asyncio.all_tasks() == {asyncio.current_task()}


# As tests of pytest.

test_good_engine = pytest.mark.rows("K1")(engine_conformance_tests(CorrectEngine))

SUITE = """
from rx_backend.testing import engine_conformance_tests
from tests.engines.broken import broken

test_conformance = engine_conformance_tests(broken("{engine}"))
"""


@pytest.mark.rows("K1")
def test_the_kit_makes_one_test_per_rule(pytester: pytest.Pytester) -> None:
    """Two lines make a test for each rule, named after it; only the broken rule fails."""
    pytester.makepyfile(SUITE.format(engine="NoTerminal"))
    result = pytester.runpytest_inprocess("-p", "no:randomly", "-q", "-rA")
    result.assert_outcomes(passed=len(Rule) - 1, failed=1)
    result.stdout.fnmatch_lines(["*FAILED*::test_conformance[[]no_terminal[]]*"])
    result.stdout.fnmatch_lines(["*ended after 8 items without a terminal*"])


@pytest.mark.rows("K1")
def test_an_unchecked_rule_does_not_pass() -> None:
    """If the engine does not start, the rules that need it fail as not checked."""
    test = engine_conformance_tests(broken("StartRaises"))
    with pytest.raises(ConformanceError, match="no device"):
        test(Rule.START_FAILED)
    with pytest.raises(pytest.fail.Exception, match="not checked"):
        test(Rule.NO_CHUNK)
    test(Rule.UNSTARTED_CLEANUP_FAILED)


@pytest.mark.rows("K1")
def test_the_engine_is_checked_once() -> None:
    """All the tests of one engine share one run."""
    made: list[object] = []

    def make() -> CorrectEngine:
        made.append(None)
        return CorrectEngine()

    test = engine_conformance_tests(make)
    test(Rule.START_FAILED)
    test(Rule.NO_CHUNK)
    assert len(made) == 2
