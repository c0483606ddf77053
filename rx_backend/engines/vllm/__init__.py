"""Engine on vLLM."""

from rx_backend.engines.vllm.engine import VllmEngine

__all__ = ("VllmEngine",)
