"""
Answers of a web service as server-sent events, for Starlette, FastAPI and what is built on them.

A route returns ``respond(adapter.generate(request, context), ChatChunks("model"))``. Needs the extra
``web``.
"""

from importlib import import_module

try:
    import_module("starlette")
except ImportError as error:
    raise ImportError("rx_backend.web needs starlette: pip install 'rx-backend[web]'") from error

from rx_backend.web._failures import FAILURES, error_response, status_of
from rx_backend.web._formats import Format, JsonItems, Writer
from rx_backend.web._openai_formats import ChatChunks, CompletionChunks
from rx_backend.web._requests import context_of
from rx_backend.web._response import EventStreamResponse, respond
from rx_backend.web._resume import resume, start_or_resume

__all__ = (
    "FAILURES",
    "ChatChunks",
    "CompletionChunks",
    "EventStreamResponse",
    "Format",
    "JsonItems",
    "Writer",
    "context_of",
    "error_response",
    "respond",
    "resume",
    "start_or_resume",
    "status_of",
)
