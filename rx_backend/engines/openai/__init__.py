"""Engine for a server with OpenAI's API."""

from rx_backend.engines.openai.engine import OpenAIEngine

__all__ = ("OpenAIEngine",)
