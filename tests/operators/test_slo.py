"""`operators.slo`, its windows and their snapshots."""

from __future__ import annotations

import base64
import gc
import json
import math
import pickle
import re
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from itertools import accumulate, count
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators import (
    Pipeline,
    SloFigures,
    SloSnapshot,
    SloWindows,
    TokenTimes,
    deadlines,
    fuse,
    slo,
)
from operators._outcome import OutcomeTracker
from operators._slo._tally import ACCURACY, Key, LatencySketch, Tally, load_library
from operators.authoring import AnyOperator, nearest_rank
from rx_backend import (
    EngineAdapter,
    LLMEngineOutput,
    PreprocessedRequest,
    RequestContext,
    standard_pipeline,
)
from rx_backend.engines import SampleEngine
from rx_backend.protocols import StopConditions
from rx_backend.scope import RequestScope
from tests.engines import ScriptedEngine
from tests.operators._help import Engine, Life, handshake, terminal, token

# A clock that ticks at every look: the first token comes 1000 ms after the start, and each further
# one after another 1000 ms.
ON_TIME: dict[str, Any] = {"ttft_ms": 1000, "itl_ms": 1000}
LATE_FIRST: dict[str, Any] = {"ttft_ms": 999, "itl_ms": 1000}
LATE_LATER: dict[str, Any] = {"ttft_ms": 1000, "itl_ms": 999}


class Broken:
    """A finish reason that says the run failed."""

    is_error = True


def ticking() -> SloWindows:
    ticks = count()
    return SloWindows(clock=lambda: float(next(ticks)))


def outcome(figures: SloFigures) -> str:
    """Which of the four the only request became."""
    assert figures.requests == 1
    assert figures.open == 0
    (found,) = (
        name for name in ("good", "slow", "failed", "cancelled") if getattr(figures, name) == 1
    )
    return found


@pytest.mark.parametrize(
    ("items", "how", "options", "expected"),
    [
        pytest.param([token(1), token(2), terminal()], {}, ON_TIME, "good", id="in-time"),
        pytest.param([token(1), token(2), terminal()], {}, LATE_FIRST, "slow", id="ttft"),
        pytest.param([token(1), token(2), terminal()], {}, LATE_LATER, "slow", id="itl"),
        pytest.param([token(1), terminal(2)], {}, LATE_LATER, "slow", id="terminal-with-token"),
        pytest.param(
            [token(1), token(2), terminal()],
            {},
            {"ttft_ms": None, "itl_ms": 1000},
            "good",
            id="no-ttft-target",
        ),
        pytest.param(
            [token(1), token(2), terminal()],
            {},
            {"ttft_ms": 1000, "itl_ms": None},
            "good",
            id="no-itl-target",
        ),
        pytest.param([token(1), terminal()], {}, LATE_LATER, "good", id="one-token"),
        pytest.param(
            [token(1), terminal()],
            {},
            {"ttft_ms": None, "itl_ms": 1, "itl_statistic": "p99"},
            "good",
            id="one-token-by-p99",
        ),
        pytest.param([handshake(), terminal()], {}, ON_TIME, "good", id="no-token"),
        pytest.param([terminal()], {}, LATE_FIRST, "slow", id="no-token-but-late"),
        pytest.param([token(1), terminal(reason=Broken())], {}, ON_TIME, "failed", id="says-error"),
        pytest.param([token(1)], {"error": LookupError()}, ON_TIME, "failed", id="error"),
        pytest.param([], {"error": LookupError()}, ON_TIME, "failed", id="error-at-once"),
        pytest.param(
            [token(1), terminal()], {"error": LookupError()}, ON_TIME, "failed", id="error-behind"
        ),
        pytest.param([token(1)], {}, ON_TIME, "failed", id="no-terminal"),
        pytest.param([token(1), token(2)], {"take": 1}, ON_TIME, "cancelled", id="dropped"),
        pytest.param([token(1), token(2)], {"take": 1}, LATE_FIRST, "slow", id="dropped-late"),
        pytest.param([token(1), token(2)], {"take": 1}, LATE_LATER, "slow", id="dropped-waiting"),
        pytest.param([], {"ends": False}, ON_TIME, "cancelled", id="dropped-before-a-token"),
        pytest.param([], {"ends": False}, LATE_FIRST, "slow", id="dropped-before-a-token-late"),
        pytest.param([token(1), terminal(), token(2)], {"take": 2}, ON_TIME, "good", id="taken"),
        pytest.param(
            [token(1), terminal(reason="cancelled")], {}, ON_TIME, "cancelled", id="says-cancelled"
        ),
    ],
)
@pytest.mark.rows("P6a")
def test_every_outcome_is_counted_once(
    life: Life, items: list[Any], how: dict[str, Any], options: dict[str, Any], expected: str
) -> None:
    """Every way out counts once, and the items that came out are the source's own."""
    windows = ticking()
    seen = life(items, slo(**options, windows=windows, key="m"), **how)
    assert list(map(id, seen.items)) == list(map(id, items[: len(seen.items)]))
    assert outcome(windows.snapshot()["m"]) == expected


@pytest.mark.rows("F5")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({"itl_ms": 500}, "good", id="mean"),
        pytest.param({"itl_ms": 499}, "slow", id="mean-missed"),
        pytest.param({"itl_ms": 999, "itl_statistic": "p99"}, "slow", id="p99"),
        pytest.param({"itl_ms": 1000, "itl_statistic": "p99"}, "good", id="p99-met"),
    ],
)
def test_tokens_of_one_chunk_share_its_gap(
    life: Life, options: dict[str, Any], expected: str
) -> None:
    """The first chunk's tokens have no gap; three later tokens in 1 s and one in 1 s are 500 ms."""
    windows = ticking()
    chunks = [token(1, 2), token(3, 4, 5), token(6), terminal()]
    life(chunks, slo(None, **options, windows=windows, key="m"))
    figures = windows.snapshot()["m"]
    assert outcome(figures) == expected
    assert figures.tokens == 6
    assert figures.itl is not None
    assert figures.itl.count == 4
    assert figures.itl.p50_ms == pytest.approx(1000 / 3, rel=0.01)
    assert figures.itl.p99_ms == pytest.approx(1000, rel=0.01)


def test_what_was_not_measured_has_no_figures(life: Life) -> None:
    """A request without tokens has no latencies; text without token ids has those of its chunks."""
    windows = ticking()
    life([terminal()], slo(1000, 1000, windows=windows, key="none"))
    texts = [LLMEngineOutput(text=text) for text in "abc"]
    life([*texts, LLMEngineOutput.stop()], slo(1000, 1000, windows=windows, key="text"))
    figures = windows.snapshot()
    assert (figures["none"].ttft, figures["none"].itl) == (None, None)
    ttft, itl = figures["text"].ttft, figures["text"].itl
    assert ttft is not None
    assert itl is not None
    assert (ttft.count, itl.count) == (1, 2)


def placed(counted: AnyOperator, before: str | None) -> Pipeline[Any]:
    """Put an operator in front of a standard one, or behind all."""
    standard: Pipeline[Any] = standard_pipeline
    if before is None:
        return standard.with_operators(counted)
    return standard.insert_before(before, counted)


async def consume(adapter: EngineAdapter, model: str = "m", *, stop: bool = False) -> None:
    """Consume an answer of four tokens, or stop it at the first."""
    conditions, context = StopConditions(max_tokens=4), RequestContext()
    request = PreprocessedRequest(model=model, token_ids=[1], stop_conditions=conditions)
    async for _ in await adapter.generate(request, context):
        if stop:
            context.stop_generating()


@pytest.mark.rows("F2")
@pytest.mark.parametrize(("ttft_ms", "expected"), [(1249, "slow"), (1250, "good")])
async def test_the_set_up_counts_towards_ttft(ttft_ms: float, expected: str) -> None:
    """A client waits through both, so the target and the figures are for the sum."""
    windows = SloWindows(clock=lambda: 0.0)
    counted = slo(ttft_ms, None, windows=windows, key="m")
    script = [LLMEngineOutput.token(7), LLMEngineOutput.stop()]
    engine, pipeline = ScriptedEngine(1.0, *script, setup=[0.25]), placed(counted, None)
    await consume(EngineAdapter(engine, pipeline=pipeline, record=True))
    figures = windows.snapshot()["m"]
    assert outcome(figures) == expected
    assert figures.ttft is not None
    assert figures.ttft.p50_ms == pytest.approx(1250, rel=0.01)


async def test_an_open_request_is_late_once_it_misses_a_target() -> None:
    """Before its end it is in `open` alone; a wait that is too long shows while it lasts."""
    now = [0.0]
    windows = SloWindows(clock=lambda: now[0])
    stream = fuse(
        Engine([token(1), token(2)], ends=False)(), [slo(500, 50, windows=windows, key="m")]
    )

    def open_and_late() -> tuple[int, int, int]:
        figures = windows.snapshot()["m"]
        return figures.open, figures.late, figures.requests

    assert open_and_late() == (1, 0, 0)
    now[0] = 0.501
    assert open_and_late() == (1, 1, 0)
    now[0] = 0.5
    await anext(stream)
    now[0] = 0.54
    await anext(stream)
    assert open_and_late() == (1, 0, 0)
    now[0] = 0.601
    assert open_and_late() == (1, 1, 0)
    await stream.aclose()
    figures = windows.snapshot()["m"]
    assert (figures.open, figures.late, figures.slow) == (0, 0, 1)


@pytest.mark.rows("F2", "P8", "O2")
@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("before", ["validate_chunks", "trace_link", None])
async def test_it_counts_in_the_standard_pipeline(record: bool, before: str | None) -> None:
    """Wherever it stands it counts tokens, failures and stops, recorded or not."""
    windows = SloWindows(clock=lambda: 0.0)

    def pipeline(scope: RequestScope) -> Pipeline:
        key = scope.request.model, "tenant"
        return placed(slo(500, 50, windows=windows, key=key), before)

    def adapter(interval_ms: float) -> EngineAdapter:
        engine = SampleEngine(token_interval_ms=interval_ms)
        return EngineAdapter(engine, pipeline=pipeline, record=record)

    await consume(adapter(50), "fast")
    await consume(adapter(51), "slow")
    await consume(adapter(50), "stopped", stop=True)
    snapshot = windows.snapshot()
    assert {key[0]: outcome(figures) for key, figures in snapshot.items()} == {
        "fast": "good",
        "slow": "slow",
        "stopped": "cancelled",
    }
    assert snapshot["fast", "tenant"].tokens == 4
    assert snapshot["fast", "tenant"].goodput == 1.0
    assert snapshot.total.goodput == 0.5


async def test_an_expired_deadline_counts_as_failed() -> None:
    """It stops the request, which counts as failed all the same."""
    windows = SloWindows(clock=lambda: 0.0)
    timed = standard_pipeline.insert_before("validate_chunks", deadlines(first_token_s=1))
    adapter = EngineAdapter(
        SampleEngine(token_interval_ms=5_000),
        pipeline=timed.with_operators(slo(500, 50, windows=windows, key="m")),
    )
    await consume(adapter)
    assert outcome(windows.snapshot()["m"]) == "failed"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def feed(
    windows: SloWindows, key: Key, gaps_s: Sequence[float] = (), *, ttft_s: float = 0.1
) -> None:
    """One request with these gaps between its tokens; its targets are 200 ms and 50 ms."""
    times = TokenTimes()
    times.started, times.is_timed = 1.0, True
    times.times.extend(accumulate(gaps_s, initial=1.0 + ttft_s))
    times.finish_reasons[0] = "stop"
    ended = OutcomeTracker(times)
    scope: Any = SimpleNamespace(times=times, outcome=ended)
    assert slo(200, 50, windows=windows, key=key).start(scope) is None, "no item visits it"
    ended.end(dropped=False)


class TestSliding:
    def test_requests_expire_with_their_bucket(self) -> None:
        """A request ends in a bucket of 5 s, and leaves when that is 60 s back."""
        clock = Clock()
        windows = SloWindows(window_s=60, bucket_s=5, clock=clock)
        seen: list[tuple[float, int]] = []
        clock.now = 7.0
        windows.failed("m")
        for clock.now in (9.9, 64.9, 65.0, 1000.0):
            seen.append((clock.now, windows.snapshot().total.failed))
        assert seen == [(9.9, 1), (64.9, 1), (65.0, 0), (1000.0, 0)]
        assert list(windows.snapshot()) == []

    def test_rates_are_over_the_covered_time(self) -> None:
        """At first that is a bucket, then the windows' age, at last their length."""
        clock = Clock()
        windows = SloWindows(window_s=60, bucket_s=5, clock=clock)
        rates: list[float] = []
        for clock.now in (0.0, 20.0, 60.0, 124.9):
            for _ in range(60):
                feed(windows, "m", [0.01])
            rates.append(windows.snapshot()["m"].goodput_per_s)
        assert rates == [60 / 5, 120 / 20, pytest.approx(120 / 55), pytest.approx(60 / 59.9)]

    def test_a_snapshot_is_immutable(self) -> None:
        """Neither requests that end later nor time that passes show in it, read late as it is."""
        clock = Clock()
        windows = SloWindows(clock=clock)
        feed(windows, "m", [0.01] * 9)
        early = windows.snapshot()
        feed(windows, "m", [0.03] * 90)
        clock.now = 1e6
        windows.failed("m")
        itl = early["m"].itl
        assert early["m"].requests == 1
        assert itl is not None
        assert (itl.count, itl.p99_ms) == (9, pytest.approx(10, rel=ACCURACY))

    def test_a_request_that_ends_during_counting_is_counted(self) -> None:
        """The garbage collector may end a stream at any moment, in the middle of counting too."""
        clock = Clock()

        def interrupted() -> float:
            if endings:
                endings.pop()()
            return clock.now

        endings: list[Callable[[], None]] = []
        windows = SloWindows(clock=interrupted)
        endings += [lambda: windows.failed("inner")] * 2
        windows.failed("outer")
        assert windows.snapshot()["inner"].failed == 2
        endings.append(lambda: windows.failed("inner"))
        windows.snapshot()
        assert windows.snapshot().total.failed == 4

    def test_threads_may_count_at_once(self) -> None:
        """Nothing is lost and nothing counts twice."""
        windows = SloWindows()
        threads = [
            threading.Thread(target=lambda: [windows.failed("m") for _ in range(500)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert windows.snapshot()["m"].failed == 2000


class TestKeys:
    def test_memory_is_bounded_over_a_long_run_with_many_keys(self) -> None:
        """New keys for three hours: never more tallies than keys and buckets, nothing lost."""
        clock = Clock()
        windows = SloWindows(window_s=60, bucket_s=5, max_keys=10, clock=clock)
        before = _tallies_alive()
        most = 0
        for second in range(0, 3 * 3600, 3):
            clock.now = float(second)
            windows.failed(f"key {second % 7200}")
            windows.failed("always")
            most = max(most, _tallies_alive() - before) if second % 600 == 0 else most
        assert 0 < most <= 11 * 12
        snapshot = windows.snapshot()
        assert snapshot.total.requests == 40
        assert snapshot["always"].requests == 20
        assert len(snapshot) == 11
        assert snapshot["other"].requests > 0

    def test_open_requests_share_the_limit_on_keys(self) -> None:
        """A snapshot names no more keys than the windows hold, also of what has not ended."""
        windows = SloWindows(max_keys=2)
        counted = [slo(1, 1, windows=windows, key=key).start(None) for key in "abcd"]
        snapshot = windows.snapshot()
        assert sorted(figures.open for figures in snapshot.values()) == [1, 1, 2]
        assert snapshot["other"].open == 2
        del counted

    def test_an_idle_key_makes_room(self) -> None:
        """Beyond the limit a key counts under `other`, open requests too, until one has left."""
        clock = Clock()
        windows = SloWindows(window_s=10, bucket_s=5, max_keys=1, clock=clock)
        windows.failed("a")
        windows.failed("b")
        counted = slo(1, 1, windows=windows, key="b").start(None)
        assert {key: (f.failed, f.open) for key, f in windows.snapshot().items()} == {
            "a": (1, 0),
            "other": (1, 1),
        }
        clock.now = 10.0
        windows.failed("b")
        assert {key: (f.failed, f.open) for key, f in windows.snapshot().items()} == {"b": (1, 1)}
        del counted


def _tallies_alive() -> int:
    return sum(type(thing) is Tally for thing in gc.get_objects())


GAPS_S = st.lists(st.floats(1e-6, 100.0), max_size=8)
# Their figures could not be computed.
IMPOSSIBLE = [10**400, 2**70, 2**53 + 1]
KEYS: list[Key] = ["m", "n", ("m", "x")]
ENDS = st.tuples(
    st.sampled_from([0.0, 0.4, 3.0, 11.0, 70.0]),
    st.integers(0, 2),
    st.sampled_from(KEYS),
    st.floats(0.001, 0.4),
    GAPS_S,
)


class TestSnapshots:
    @given(st.lists(ENDS, max_size=12))
    def test_merged_windows_are_windows_of_all(
        self, ends: list[tuple[float, int, Key, float, list[float]]]
    ) -> None:
        """Three workers' snapshots, sent as JSON, make the one that a single worker would have."""
        clock = Clock()
        workers = [SloWindows(clock=clock) for _ in range(3)]
        alone = SloWindows(clock=clock)
        for after_s, worker, key, ttft_s, gaps_s in ends:
            clock.now += after_s
            feed(workers[worker], key, gaps_s, ttft_s=ttft_s)
            feed(alone, key, gaps_s, ttft_s=ttft_s)
        sent = [SloSnapshot.from_json(windows.snapshot().to_json()) for windows in workers]
        merged, expected = sent[0].merge(*sent[1:]), alone.snapshot()
        assert merged == expected
        assert merged.total == expected.total

    @given(st.lists(st.floats(1e-8, 1e7), min_size=1, max_size=80), st.floats(0, 1))
    def test_quantiles_have_the_documented_accuracy(
        self, latencies_s: list[float], q: float
    ) -> None:
        """No quantile is further from the nearest rank's value than one part in a hundred."""
        sketch = LatencySketch()
        for start in range(0, len(latencies_s), 50):
            sketch.add(latencies_s[start : start + 50])
        exact_ms = nearest_rank(sorted(latencies_s), q) * 1000.0
        assert sketch.count == len(latencies_s)
        assert sketch.quantile_ms(q) == pytest.approx(exact_ms, rel=ACCURACY * (1 + 1e-9))

    def test_the_figures_of_a_key(self) -> None:
        """A hundred requests: counts, goodput, rates and quantiles of both latencies."""
        windows = SloWindows(window_s=60, bucket_s=5, clock=lambda: 0.0)
        for number in range(1, 101):
            feed(windows, "m", [0.04, 0.06] if number <= 10 else [0.02], ttft_s=number / 400)
        figures = windows.snapshot()["m"]
        assert (figures.requests, figures.good, figures.slow, figures.tokens) == (100, 80, 20, 210)
        assert figures.goodput == 0.8
        assert figures.goodput_per_s == 16
        assert figures.tokens_per_s == 42
        assert figures.ttft is not None
        assert figures.itl is not None
        assert (figures.ttft.count, figures.itl.count) == (100, 110)
        assert [figures.ttft.p50_ms, figures.ttft.p90_ms, figures.ttft.p99_ms] == [
            pytest.approx(exact_ms, rel=ACCURACY) for exact_ms in (127.5, 225.0, 247.5)
        ]
        assert [figures.itl.p50_ms, figures.itl.p90_ms, figures.itl.p99_ms] == [
            pytest.approx(exact_ms, rel=ACCURACY) for exact_ms in (20, 40, 60)
        ]
        with pytest.raises(KeyError):
            windows.snapshot()["another"]

    @pytest.mark.parametrize("odd", [0.0, -1.0, math.inf, math.nan, 1e300])
    def test_a_faulty_clock_does_no_harm(self, odd: float) -> None:
        """Gaps that can't be are counted too, and the others keep their figures."""
        windows = SloWindows(clock=lambda: 0.0)
        feed(windows, "m", [0.02] * 50)
        feed(windows, "m", [odd])
        itl = SloSnapshot.from_json(windows.snapshot().to_json())["m"].itl
        assert itl is not None
        assert itl.count == 51
        assert itl.p50_ms == pytest.approx(20, rel=ACCURACY)

    def test_a_snapshot_can_be_pickled(self) -> None:
        """As a pool of processes sends what it returns."""
        windows = SloWindows()
        feed(windows, ("m", "x"), [0.02])
        snapshot = windows.snapshot()
        assert pickle.loads(pickle.dumps(snapshot)) == snapshot

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ((b'"good":1', b'"good":-1'), "Expected `int` >= 0 - at `$.keys[0][1].counts"),
            ((b'"good":1', b'"god":1'), "Invalid enum value 'god' - at `key` in `$.keys[0][1].c"),
            *(((b'"good":1', b'"good":%d' % count), ".counts") for count in IMPOSSIBLE),
            ((b'"covered_s":5.0,', b""), "Object missing required field `covered_s`"),
            ((b"}]]}", b"}]]"), "Input data was truncated"),
        ],
    )
    def test_invalid_snapshot_json_is_rejected(
        self, change: tuple[bytes, bytes], message: str
    ) -> None:
        """The error names the place."""
        windows = SloWindows(clock=lambda: 0.0)
        feed(windows, "m", [0.02])
        data = windows.snapshot().to_json()
        assert change[0] in data
        with pytest.raises(ValueError, match=r"SloSnapshot\.from_json: ") as raised:
            SloSnapshot.from_json(data.replace(*change))
        assert message in str(raised.value)

    @pytest.mark.rows("P10")
    def test_a_key_that_can_not_be_encoded_is_repaired(self) -> None:
        """It costs no other key; keys that are the same then are one."""
        windows = SloWindows(clock=lambda: 0.0)
        for key in ("good", "cut \ud83d", "cut \ud83e", ("m", "\udc00"), "\U0001f600"):
            windows.failed(key)
        read = SloSnapshot.from_json(windows.snapshot().to_json())
        failed = {key: figures.failed for key, figures in read.items()}
        assert failed == {"good": 1, "cut \ufffd": 2, ("m", "\ufffd"): 1, "\U0001f600": 1}

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            # Their sum would be infinite.
            ((struct.pack("<d", 1.0), struct.pack("<d", 1e308)), "expected counts of latencies"),
            # Their bins do not add up.
            ((b"\xf0?", b"\xf1?"), "expected a DDSketch with a relative accuracy of 0.01"),
        ],
    )
    def test_an_inconsistent_sketch_is_rejected(
        self, change: tuple[bytes, bytes], message: str
    ) -> None:
        """By its counts, or by its accuracy."""
        sketch = LatencySketch()
        sketch.add([0.02])
        data = sketch.to_bytes()
        assert change[0] in data
        with pytest.raises(ValueError, match=re.escape(message)):
            LatencySketch.from_bytes(data.replace(*change))

    @pytest.mark.parametrize("first", [-100_000, 100_000])
    def test_a_sketch_of_impossible_latencies_is_refused(self, first: int) -> None:
        """A store allocates all bins between two latencies."""
        sketch = LatencySketch()
        sketch.add([0.02])
        message = load_library().pb.DDSketch.FromString(sketch.to_bytes())
        message.positiveValues.contiguousBinIndexOffset = first
        with pytest.raises(ValueError, match="expected counts of latencies between 1 ns"):
            LatencySketch.from_bytes(message.SerializeToString())

    @given(st.data())
    def test_invalid_sketch_bytes_are_rejected(self, data: st.DataObject) -> None:
        """Whatever its bytes are: they are read as a sketch, or the error names the place."""
        windows = SloWindows(clock=lambda: 0.0)
        feed(windows, "m", [0.02])
        message = json.loads(windows.snapshot().to_json())
        whole = base64.b64decode(message["keys"][0][1]["itl"])
        place = data.draw(st.integers(0, len(whole)))
        message["keys"][0][1]["itl"] = base64.b64encode(
            whole[:place] + data.draw(st.binary(max_size=6)) + whole[place + 3 :]
        ).decode()
        try:
            read = SloSnapshot.from_json(json.dumps(message))
        except ValueError as error:
            # Or it is read, so that nothing need be raised.
            assert re.match(r"SloSnapshot\.from_json: .*\$\.keys\[0\]\[1\]\.itl", str(error))  # noqa: PT017
        else:
            assert read["m"].good == 1
            assert SloSnapshot.from_json(read.to_json()) == read

    def test_merged_rates_are_over_the_longest_time(self) -> None:
        """A worker that came later adds its requests to the same seconds, in either order."""
        clock = Clock()
        early = SloWindows(clock=clock)
        clock.now = 50.0
        late = SloWindows(clock=clock)
        feed(early, "m")
        feed(late, "m")
        for first, second in ((early, late), (late, early)):
            merged = first.snapshot().merge(second.snapshot())
            assert merged["m"].goodput_per_s == 2 / 50

    def test_windows_of_different_lengths_do_not_merge(self) -> None:
        """Their rates would mean nothing."""
        minute, hour = SloWindows(window_s=60), SloWindows(window_s=3600)
        with pytest.raises(ValueError, match=r"window_s: expected 60\.0, got 3600\.0"):
            minute.snapshot().merge(hour.snapshot())

    @pytest.mark.parametrize("wrong", [None, 5, SloWindows(), b"{}"], ids=repr)
    def test_only_snapshots_are_merged(self, wrong: Any) -> None:
        """Windows themselves, and a snapshot in JSON, are rejected by name."""
        snapshot = SloWindows().snapshot()
        with pytest.raises(TypeError, match=r"SloSnapshot\.merge: others: expected snapshots, got"):
            snapshot.merge(snapshot, wrong)


class TestOptions:
    def test_a_missing_package_names_the_extra(self) -> None:
        """`import operators` does without it; windows say what to install."""
        code = (
            "import sys; sys.modules['ddsketch'] = None\n"
            "import operators\n"
            "try: operators.SloWindows()\n"
            "except ImportError as error: print(error)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert (
            done.stdout == "SLO windows need the package ddsketch: pip install 'rx-backend[slo]'\n"
        )
