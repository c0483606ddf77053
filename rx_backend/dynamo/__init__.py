"""
Serving on NVIDIA's Dynamo runtime, and engines written for it.

Nothing here is imported by ``import rx_backend``. The runtime, package ``ai-dynamo-runtime`` in the
extra ``dynamo``, is imported on first use.

>>> from rx_backend import EngineAdapter
>>> from rx_backend.engines import SampleEngine
>>> handler = serving(EngineAdapter(SampleEngine()))  # for `endpoint.serve_endpoint(handler)`
"""

from rx_backend.dynamo.context import BridgedContext, ContextBridge
from rx_backend.dynamo.engine_context import EngineContext
from rx_backend.dynamo.engines import from_any_engine, from_dynamo_engine
from rx_backend.dynamo.serving import Handler, serving

__all__ = (
    "BridgedContext",
    "ContextBridge",
    "EngineContext",
    "Handler",
    "from_any_engine",
    "from_dynamo_engine",
    "serving",
)
