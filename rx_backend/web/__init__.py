"""
Answers as server-sent events, for Starlette and FastAPI.

A route returns ``respond(adapter.generate(request, context), ChatChunks("model"))``. Needs the
extra ``web``.
"""

from rx_backend.extras import import_extra

import_extra("starlette", "web", package="starlette", needed_by="rx_backend.web")

from rx_backend.web._failures import FAILURES, error_response, status_of
from rx_backend.web._formats import Format, JsonItems, Writer
from rx_backend.web._openai_formats import ChatChunks, CompletionChunks
from rx_backend.web._requests import context_of
from rx_backend.web._response import respond
from rx_backend.web._resume import resume, start_or_resume

__all__ = (
    "FAILURES",
    "ChatChunks",
    "CompletionChunks",
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
