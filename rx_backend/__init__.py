"""The public names for worker code: adapter, engine contract, and the types between them."""

try:
    from operators import Pipeline
except ImportError as error:
    import operators as found

    raise ImportError(
        f"rx_backend needs its own package `operators`, and another one shadows it: "
        f"{getattr(found, '__file__', None) or list(found.__path__)}; rename that one, or remove its "
        "folder from sys.path"
    ) from error

from rx_backend.adapter import EngineAdapter
from rx_backend.context import LatchedSignal, RequestContext
from rx_backend.disagg import DisaggregationMode
from rx_backend.engine import EngineConfig, LLMEngine
from rx_backend.errors import (
    BackendError,
    Cancelled,
    CannotConnect,
    ConnectionTimeout,
    Disconnected,
    EngineShutdown,
    InvalidArgument,
    ResponseTimeout,
    StreamIncomplete,
    Unknown,
)
from rx_backend.failover import FailoverEngine
from rx_backend.hedging import HedgedEngine
from rx_backend.pipeline import standard_pipeline
from rx_backend.probe import JsonProbeAdapter
from rx_backend.protocols import (
    Annotated,
    FinishReason,
    LLMEngineOutput,
    PreprocessedRequest,
    TraceLink,
)
from rx_backend.retry_budget import RetryBudget
from rx_backend.scope import RequestScope
from rx_backend.stream import ResponseStream

__all__ = (
    "Annotated",
    "BackendError",
    "Cancelled",
    "CannotConnect",
    "ConnectionTimeout",
    "DisaggregationMode",
    "Disconnected",
    "EngineAdapter",
    "EngineConfig",
    "EngineShutdown",
    "FailoverEngine",
    "FinishReason",
    "HedgedEngine",
    "InvalidArgument",
    "JsonProbeAdapter",
    "LLMEngine",
    "LLMEngineOutput",
    "LatchedSignal",
    "Pipeline",
    "PreprocessedRequest",
    "RequestContext",
    "RequestScope",
    "ResponseStream",
    "ResponseTimeout",
    "RetryBudget",
    "StreamIncomplete",
    "TraceLink",
    "Unknown",
    "standard_pipeline",
)
