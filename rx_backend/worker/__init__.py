"""
Workers: an engine served on a distributed runtime, from ``start`` to ``cleanup``.

Needs the package ``ai-dynamo-runtime``, which is imported only when a worker runs.
"""

from rx_backend.worker.dynamo_runtime import DynamoEndpoint, DynamoRuntime
from rx_backend.worker.incoming import RequestGate
from rx_backend.worker.lifecycle import Lifecycle
from rx_backend.worker.model_files import write_model_files
from rx_backend.worker.shutdown import Shutdown, ShutdownTimes
from rx_backend.worker.worker import Worker

__all__ = (
    "DynamoEndpoint",
    "DynamoRuntime",
    "Lifecycle",
    "RequestGate",
    "Shutdown",
    "ShutdownTimes",
    "Worker",
    "write_model_files",
)
