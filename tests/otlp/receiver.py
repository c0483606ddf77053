"""A real OTLP receiver for tests, over HTTP and gRPC, and what it received."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar, cast

import grpc
import pytest
from google.protobuf.message import Message
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_api
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_api

from tests.otlp.messages import Link, Point, Span, points_in, spans_in

__all__ = ("Link", "Receiver", "otlp_server", "receiver", "running")

STEP_S = 15.0

T = TypeVar("T")


class Receiver:
    """
    What was received since `clear`; an export is in it before it is acknowledged.

    Attributes:
        http: Where OTLP over HTTP goes, without a path.
        grpc: Where OTLP over gRPC goes.
        spans: Every span, in the order of arrival.
        connections: How many connections came over HTTP.
    """

    http: str
    grpc: str

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._points: dict[str, Point] = {}
        self.spans: list[Span] = []
        self.connections = 0

    @property
    def points(self) -> list[Point]:
        """The latest point of every metric, resource and set of attributes."""
        return list(self._points.values())

    def named(self, name: str) -> list[Span]:
        """Return the spans called *name*."""
        return [span for span in self.spans if span.name == name]

    def points_of(self, name: str) -> list[Point]:
        """Return the latest points of the metric *name*."""
        return [point for point in self.points if point.name == name]

    def clear(self) -> None:
        """Forget what was received so far."""
        with self._news:
            self.spans = []
            self.connections = 0
            self._points = {}

    def until(self, condition: Callable[[], T], within_s: float = STEP_S) -> T:
        """Wait until what was received makes *condition* true, and return its result."""
        with self._news:
            result = self._news.wait_for(condition, within_s)
            assert result, f"only these came: {self.spans} {self.points}"
            return result

    def take_spans(self, request: trace_api.ExportTraceServiceRequest) -> None:
        """Keep the spans of an export."""
        with self._news:
            self.spans += spans_in(request)
            self._news.notify_all()

    def take_points(self, request: metrics_api.ExportMetricsServiceRequest) -> None:
        """Keep the points of an export."""
        with self._news:
            for point in points_in(request):
                identity = (point.scope, point.name, point.resource, point.attributes)
                self._points[repr(identity)] = point
            self._news.notify_all()


@pytest.fixture(scope="session")
def otlp_server() -> Generator[Receiver]:
    """Run one receiver for all tests that use it."""
    with running() as server:
        yield server


@pytest.fixture
def receiver(otlp_server: Receiver) -> Receiver:
    """Return the receiver, with nothing received yet."""
    otlp_server.clear()
    return otlp_server


@contextmanager
def running() -> Generator[Receiver]:
    """Run a receiver on free ports of loopback."""
    received = Receiver()
    rpc = grpc.server(ThreadPoolExecutor(4, "otlp-receiver"))
    traces = _service(
        "trace.v1.TraceService",
        received.take_spans,
        trace_api.ExportTraceServiceRequest,
        trace_api.ExportTraceServiceResponse,
    )
    points = _service(
        "metrics.v1.MetricsService",
        received.take_points,
        metrics_api.ExportMetricsServiceRequest,
        metrics_api.ExportMetricsServiceResponse,
    )
    rpc.add_generic_rpc_handlers((traces, points))
    received.grpc = f"http://127.0.0.1:{rpc.add_insecure_port('127.0.0.1:0')}"
    rpc.start()
    web = _WebServer(received)
    received.http = f"http://127.0.0.1:{web.server_port}"
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield received
    finally:
        web.shutdown()
        web.server_close()
        thread.join()
        rpc.stop(grace=None).wait()


def _service(
    name: str,
    take: Callable[[Any], None],
    request: type[Message],
    response: type[Message],
) -> grpc.GenericRpcHandler:
    """Return a gRPC service of OTLP, which has the one method ``Export``."""

    def export(received: Message, _: grpc.ServicerContext) -> Message:
        take(received)
        return response()

    method = grpc.unary_unary_rpc_method_handler(
        export, request.FromString, response.SerializeToString
    )
    return grpc.method_handlers_generic_handler(
        f"opentelemetry.proto.collector.{name}", {"Export": method}
    )


class _WebServer(ThreadingHTTPServer):
    def __init__(self, received: Receiver) -> None:
        super().__init__(("127.0.0.1", 0), _WebHandler)
        self.received = received


class _WebHandler(BaseHTTPRequestHandler):
    """OTLP over HTTP, with protobuf bodies."""

    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        cast("_WebServer", self.server).received.connections += 1

    def do_POST(self) -> None:
        received = cast("_WebServer", self.server).received
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v1/traces":
            received.take_spans(trace_api.ExportTraceServiceRequest.FromString(body))
        elif self.path == "/v1/metrics":
            received.take_points(metrics_api.ExportMetricsServiceRequest.FromString(body))
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing."""
