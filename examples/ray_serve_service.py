"""
The FastAPI service of ``fastapi_service.py`` on Ray Serve.

    pip install 'rx-backend[web]' 'ray[serve]' fastapi jinja2
    serve run ray_serve_service:service

A replica can resume only its own answers. With several replicas, give the service's
``ResumableStreams`` a source that they share (docs/jetstream.md).
"""

from __future__ import annotations

import fastapi_service
from ray import serve


@serve.deployment(max_ongoing_requests=1000)
@serve.ingress(fastapi_service.app)
class Service:
    """Serve the application's routes, with an engine for each replica."""


service = Service.bind()
