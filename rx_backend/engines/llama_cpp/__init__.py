"""Engine on llama.cpp, in this process."""

from rx_backend.engines.llama_cpp.engine import LlamaCppEngine

__all__ = ("LlamaCppEngine",)
