"""`operators._slo._windows` and `operators._slo._snapshot`."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import math
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reactivex import operators as ops

from operators import SloSnapshot, SloWindows, TokenTimes, slo
from operators._slo._tally import ACCURACY, Key, LatencySketch, Tally
from operators.authoring import nearest_rank
from tests.operators._help import pushed, terminal, virtual


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
    pushed([terminal()], slo(200, 50, windows=windows, key=key, times=times))


class TestSliding:
    def test_requests_leave_with_their_bucket(self) -> None:
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

    def test_rates_are_over_the_time_that_is_covered(self) -> None:
        """At first that is a bucket, then the windows' age, at last their length."""
        clock = Clock()
        windows = SloWindows(window_s=60, bucket_s=5, clock=clock)
        rates: list[float] = []
        for clock.now in (0.0, 20.0, 60.0, 124.9):
            for _ in range(60):
                feed(windows, "m", [0.01])
            rates.append(windows.snapshot()["m"].goodput_per_s)
        assert rates == [60 / 5, 120 / 20, pytest.approx(120 / 55), pytest.approx(60 / 59.9)]

    def test_a_snapshot_does_not_change_any_more(self) -> None:
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

    def test_a_request_that_ends_while_the_windows_are_busy_is_counted(self) -> None:
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

    def test_a_quiet_key_makes_room(self) -> None:
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

    @given(st.lists(st.floats(1e-8, 1e7), min_size=1, max_size=200), st.floats(0, 1))
    def test_quantiles_are_as_accurate_as_is_said(self, latencies_s: list[float], q: float) -> None:
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

    @pytest.mark.parametrize("odd", [0.0, -1.0, math.inf, math.nan, 1e300])
    def test_a_clock_that_goes_wrong_disturbs_nothing(self, odd: float) -> None:
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
            ((b'"covered_s":5.0,', b""), "Object missing required field `covered_s`"),
            ((b"}]]}", b"}]]"), "Input data was truncated"),
        ],
    )
    def test_json_that_is_no_snapshot_is_refused(
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

    @given(st.data())
    def test_a_sketch_that_is_none_is_refused(self, data: st.DataObject) -> None:
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

    def test_a_sketch_of_another_accuracy_is_refused(self) -> None:
        """Their bins do not add up."""
        other = LatencySketch()
        data = other.to_bytes().replace(b"\xf0?", b"\xf1?")
        with pytest.raises(
            ValueError, match=r"expected a DDSketch with a relative accuracy of 0\.01"
        ):
            LatencySketch.from_bytes(data)

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


class TestLive:
    @virtual
    async def test_snapshots_come_until_it_is_disposed(self) -> None:
        """One every 10 s of the loop's time, for each subscriber its own; then no timer is left."""
        loop = asyncio.get_running_loop()
        windows = SloWindows(window_s=60, bucket_s=5, clock=loop.time)
        live = windows.live(10.0).pipe(ops.map(lambda snapshot: snapshot.total.failed))
        seen: list[tuple[int, int]] = []
        subscription = live.subscribe(lambda failed: seen.append((round(loop.time()), failed)))
        await asyncio.sleep(15.0)
        windows.failed("m")
        await asyncio.sleep(66.0)
        subscription.dispose()
        assert seen == [
            (10, 0), (20, 1), (30, 1), (40, 1), (50, 1), (60, 1), (70, 1), (80, 0)
        ]  # fmt: skip
        await asyncio.sleep(1000.0)
        assert len(seen) == 8


class TestOptions:
    def test_without_the_package_the_error_names_the_extra(self) -> None:
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
