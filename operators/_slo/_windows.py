"""Sliding windows over many streams: the outcomes of the requests of the last seconds, by key."""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from itertools import chain
from typing import Annotated

from operators._chunk import Clock
from operators._core.arguments import AtLeast, Seconds, check_arguments
from operators._slo._request import SloRequest
from operators._slo._snapshot import SloSnapshot
from operators._slo._tally import OTHER, Ended, Key, Tally, check_key, load_library

__all__ = ("SloWindows",)


class SloWindows:
    """
    The requests of the last *window_s* seconds, by key: outcomes, tokens, latency sketches.

    Create one per process, and pass it to the ``slo`` of each pipeline. The windows slide in steps
    of *bucket_s*. Memory is bounded by the number of keys (about 4 kB per key and bucket), not by
    requests or tokens. A snapshot shows open requests too, so a stall shows before anything ends.
    Safe to use from several threads, and from finalizers that the garbage collector runs. For a
    snapshot every second subscribe to ``reactivex.interval(1.0, scheduler=LoopScheduler())``.

    Args:
        window_s: The length of the windows, in seconds.
        bucket_s: The step by which they slide, in seconds; *window_s* is a multiple of it.
        max_keys: The number of keys held at once. Requests of further keys count under ``"other"``
            until a key without a request for *window_s* is dropped.
        clock: Monotonic clock, in seconds; the loop's ``time`` under virtual time.

    Raises:
        ImportError: The package ddsketch is missing; names the extra.
        TypeError, ValueError: An option has the wrong type, or is out of range; names it.

    >>> windows = SloWindows(window_s=60, bucket_s=5)
    >>> windows.failed("llama")
    >>> windows.snapshot()["llama"].goodput
    0.0
    """

    def __init__(
        self,
        *,
        window_s: Seconds = 60.0,
        bucket_s: Seconds = 5.0,
        max_keys: Annotated[int, AtLeast(1, "key")] = 500,
        clock: Clock = time.monotonic,
    ) -> None:
        check_arguments(
            SloWindows, window_s=window_s, bucket_s=bucket_s, max_keys=max_keys, clock=clock
        )
        self._buckets_held = round(window_s / bucket_s)
        if not math.isclose(self._buckets_held * bucket_s, window_s):
            raise ValueError(
                f"SloWindows: bucket_s: expected a divisor of window_s ({window_s} s), "
                f"got {bucket_s} s"
            )
        load_library()
        self.window_s = float(window_s)
        self.bucket_s = float(bucket_s)
        self.max_keys = max_keys
        self.clock = clock
        self._made = clock()
        self._newest = math.floor(self._made / self.bucket_s)
        self._buckets: dict[int, defaultdict[Key, Tally]] = {}
        # The newest bucket of each key, except of those beyond the limit.
        self._keys: dict[Key, int] = {}
        self._open: set[SloRequest] = set()
        # Requests that have ended are queued, and the lock is only ever tried for: the garbage
        # collector may end a stream in the very thread that holds it.
        self._ended: deque[Ended] = deque()
        self._lock = threading.Lock()

    def failed(self, key: Key) -> None:
        """
        Count a request that failed before it had a stream (row S5), or was rejected.

        Raises:
            TypeError: *key* is neither a string nor a tuple of strings.
        """
        self.closed(None, Ended(check_key("SloWindows.failed: key", key), "failed"))

    def snapshot(self) -> SloSnapshot:
        """Return the current figures; takes about 0.3 ms per key."""
        with self._lock:
            self._count_ended()
            now = self.clock()
            self._slide(now)
            begin = max(self._made, (self._newest - self._buckets_held + 1) * self.bucket_s)
            counted = (bucket.items() for bucket in self._buckets.values())
            tallies = chain(*counted, self._running().items())
            snapshot = SloSnapshot(self.window_s, max(now - begin, self.bucket_s), tallies)
        self._count_if_free()
        return snapshot

    # For the operator.

    def opened(self, request: SloRequest) -> None:
        """Count a request as open until :meth:`closed` is called for it."""
        self._open.add(request)

    def closed(self, request: SloRequest | None, ended: Ended) -> None:
        """Count a request that has ended."""
        if request is not None:
            self._open.discard(request)
        self._ended.append(ended)
        self._count_if_free()

    def _count_if_free(self) -> None:
        # The holder of the lock counts what is queued meanwhile, or the next call does.
        while self._ended and self._lock.acquire(blocking=False):
            try:
                self._count_ended()
            finally:
                self._lock.release()

    def _count_ended(self) -> None:
        while self._ended:
            ended = self._ended.popleft()
            self._slide(self.clock())
            key = ended.key if self._has_room(self._keys, ended.key) else OTHER
            if key != OTHER:
                self._keys[key] = self._newest
            self._buckets.setdefault(self._newest, defaultdict(Tally))[key].add(ended)

    def _slide(self, now: float) -> None:
        self._newest = max(self._newest, math.floor(now / self.bucket_s))
        oldest = self._newest - self._buckets_held + 1
        if self._buckets and min(self._buckets) < oldest:
            self._buckets = {at: bucket for at, bucket in self._buckets.items() if at >= oldest}
            self._keys = {key: at for key, at in self._keys.items() if at >= oldest}

    def _has_room(self, keys: dict[Key, int], key: Key) -> bool:
        return key in keys or len(keys) < self.max_keys

    def _running(self) -> Mapping[Key, Tally]:
        """Return a tally of the open requests of each key."""
        keys = dict(self._keys)
        running: defaultdict[Key, Tally] = defaultdict(Tally)
        for request in list(self._open):
            key = request.key if self._has_room(keys, request.key) else OTHER
            if key != OTHER:
                keys[key] = self._newest
            counts = running[key].counts
            counts["open"] += 1
            counts["late"] += request.is_late()
        return running
