"""Engine on transformers' continuous batching."""

from rx_backend.engines.transformers.engine import TransformersEngine

__all__ = ("TransformersEngine",)
