"""Sliding windows over many streams: what became of the requests of the last seconds, by key."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque

import reactivex
from reactivex import Observable, abc
from reactivex import operators as ops

from operators._chunk import Clock
from operators._core.loop_scheduler import LoopScheduler
from operators._slo._request import SloRequest
from operators._slo._sketch import need_sketches
from operators._slo._snapshot import SloSnapshot
from operators._slo._tally import OTHER, Ended, Key, Tally, check_key

__all__ = ("SloWindows",)


class SloWindows:
    """
    The requests of the last *window_s* seconds, by key: outcomes, tokens, latency sketches.

    Make one per process, and put ``slo`` with it into each request's pipeline. The windows slide in
    steps of *bucket_s*: what is older than the oldest bucket is let go, so memory is bounded by the
    number of keys (about 4 kB per key and bucket), not by requests or tokens. Requests that are
    still open are looked at when a snapshot is taken, so a stall shows before anything ends.

    Safe to use from several threads, and from finalisers that the garbage collector runs.

    Args:
        window_s: How far the windows reach back, in seconds.
        bucket_s: How finely they slide, in seconds; *window_s* is a multiple of it.
        max_keys: How many keys they hold at once. A request whose key would be one more counts
            under ``"other"``. A key that saw no end of a request for *window_s* makes room.
        clock: Monotonic clock, in seconds; give the loop's ``time`` under virtual time.

    Raises:
        ImportError: The package ddsketch is missing; names the extra that brings it.
        ValueError: An option is out of range; names it.

    >>> windows = SloWindows(window_s=60, bucket_s=5)
    >>> windows.failed("llama")
    >>> windows.snapshot()["llama"].goodput
    0.0
    """

    def __init__(
        self,
        *,
        window_s: float = 60.0,
        bucket_s: float = 5.0,
        max_keys: int = 500,
        clock: Clock = time.monotonic,
    ) -> None:
        _check_seconds("SloWindows: window_s", window_s)
        _check_seconds("SloWindows: bucket_s", bucket_s)
        self._reach = round(window_s / bucket_s)
        if self._reach < 1 or not math.isclose(self._reach * bucket_s, window_s):
            raise ValueError(
                f"SloWindows: bucket_s: expected window_s ({window_s} s) or a whole part of it, "
                f"got {bucket_s} s"
            )
        if max_keys < 1:
            raise ValueError(f"SloWindows: max_keys: expected at least 1 key, got {max_keys}")
        need_sketches()
        self.window_s = float(window_s)
        self.bucket_s = float(bucket_s)
        self.max_keys = max_keys
        self.clock = clock
        self._made = clock()
        self._newest = self._number(self._made)
        self._buckets: dict[int, dict[Key, Tally]] = {}
        # In how many buckets each key is; not the one of those beyond the limit.
        self._keys: Counter[Key] = Counter()
        self._open: set[SloRequest] = set()
        # Requests that have ended come through here one by one: the lock is only ever tried for, as
        # the garbage collector may end a stream in the very thread that holds it.
        self._ended: deque[Ended] = deque()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"SloWindows(window_s={self.window_s}, bucket_s={self.bucket_s})"

    def failed(self, key: Key) -> None:
        """
        Count a request that failed before it had a stream (row S5), or was turned away.

        Raises:
            TypeError: *key* is neither a text nor a tuple of texts.
        """
        self.closed(None, Ended(check_key("SloWindows.failed: key", key), "failed"))

    def snapshot(self) -> SloSnapshot:
        """Return what the windows show now. Takes about 10 µs per key, and ten times that when read."""
        with self._lock:
            self._count_ended()
            now = self.clock()
            self._slide(now)
            begin = max(self._made, (self._newest - self._reach + 1) * self.bucket_s)
            tallies = self._tallies()
        self._count_if_free()
        return SloSnapshot(self.window_s, max(now - begin, self.bucket_s), tallies)

    def live(
        self, every_s: float, *, scheduler: abc.SchedulerBase | None = None
    ) -> Observable[SloSnapshot]:
        """
        Emit a snapshot every *every_s* seconds, the first after that time, until disposed.

        Args:
            every_s: The time between two, in seconds.
            scheduler: Where the time comes from; the one subscribed with, or else the running
                event loop's by default.

        Raises:
            ValueError: *every_s* is not more than 0.

        >>> import asyncio
        >>> from reactivex import operators as ops
        >>> from rx_backend.testing import run_virtual
        >>> async def main():
        ...     windows = SloWindows(clock=asyncio.get_running_loop().time)
        ...     windows.failed("llama")
        ...     failed = ops.map(lambda snapshot: snapshot.total.failed)
        ...     return await windows.live(9.0).pipe(failed, ops.take(7), ops.to_list())
        >>> run_virtual(main())
        [1, 1, 1, 1, 1, 1, 0]
        """
        _check_seconds("SloWindows.live: every_s", every_s)

        def show(_: int) -> SloSnapshot:
            return self.snapshot()

        def subscribe(
            observer: abc.ObserverBase[SloSnapshot], given: abc.SchedulerBase | None = None
        ) -> abc.DisposableBase:
            ticks = reactivex.interval(every_s, scheduler or given or LoopScheduler())
            return ticks.pipe(ops.map(show)).subscribe(observer)

        return Observable(subscribe)

    # For the operator.

    def opened(self, request: SloRequest) -> None:
        """Note that a request begins; each one is followed by :meth:`closed`."""
        self._open.add(request)

    def closed(self, request: SloRequest | None, ended: Ended) -> None:
        """Note that a request has ended."""
        if request is not None:
            self._open.discard(request)
        self._ended.append(ended)
        self._count_if_free()

    def _count_if_free(self) -> None:
        # What came while the lock was held is counted by its holder, or by whoever comes next.
        while self._ended and self._lock.acquire(blocking=False):
            try:
                self._count_ended()
            finally:
                self._lock.release()

    def _count_ended(self) -> None:
        while self._ended:
            ended = self._ended.popleft()
            self._slide(self.clock())
            self._tally(ended.key).add(ended)

    def _number(self, now: float) -> int:
        return math.floor(now / self.bucket_s)

    def _slide(self, now: float) -> None:
        number = self._number(now)
        if number <= self._newest:
            return
        self._newest = number
        for old in [old for old in self._buckets if old <= number - self._reach]:
            self._keys.subtract(list(self._buckets.pop(old)))
        self._keys = +self._keys

    def _tally(self, key: Key) -> Tally:
        """Return the newest bucket's tally for a request of *key*."""
        bucket = self._buckets.setdefault(self._newest, {})
        if key not in self._keys and len(self._keys) >= self.max_keys:
            key = OTHER
        tally = bucket.get(key)
        if tally is None:
            tally = bucket[key] = Tally()
            if key != OTHER:
                self._keys[key] += 1
        return tally

    def _tallies(self) -> dict[Key, list[Tally]]:
        """All that the windows hold, in tallies that don't change any more."""
        tallies: dict[Key, list[Tally]] = {}
        for number, bucket in self._buckets.items():
            for key, tally in bucket.items():
                kept = tally if number < self._newest else tally.copy()
                tallies.setdefault(key, []).append(kept)
        running: dict[Key, Tally] = {}
        known = set(self._keys)
        for request in list(self._open):
            key = request.key
            if key not in known and len(known) >= self.max_keys:
                key = OTHER
            elif key != OTHER:
                known.add(key)
            tally = running.setdefault(key, Tally())
            tally.open += 1
            tally.late += request.is_late()
        for key, tally in running.items():
            tallies.setdefault(key, []).append(tally)
        return tallies


def _check_seconds(name: str, value: float) -> None:
    if not 0.0 < value < math.inf:
        raise ValueError(f"{name}: expected more than 0 s, got {value}")
