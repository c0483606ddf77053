"""Engines whose packages are missing, or too old."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from rx_backend.engines.llama_cpp import LlamaCppEngine
from rx_backend.engines.transformers import TransformersEngine
from rx_backend.engines.vllm import VllmEngine


@pytest.mark.parametrize(
    ("engine", "package"), [(TransformersEngine, "transformers"), (VllmEngine, "vllm")]
)
def test_a_missing_package_is_reported(
    monkeypatch: pytest.MonkeyPatch, engine: type[TransformersEngine | VllmEngine], package: str
) -> None:
    """With what to install; importing the engine's module needs nothing."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"pip install 'rx-backend\[engine-{package}\]'"):
        engine("model")


def test_a_missing_llama_cpp_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same way."""
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(ImportError, match=r"xllamacpp: .*'rx-backend\[engine-llama-cpp\]'"):
        LlamaCppEngine("model.gguf")


def test_an_old_package_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the version that is needed."""
    old = ModuleType("transformers")
    old.__dict__["__version__"] = "4.57.1"
    monkeypatch.setitem(sys.modules, "transformers", old)
    with pytest.raises(ImportError, match=r"5\.18 or newer, not 4\.57\.1"):
        TransformersEngine("model")
