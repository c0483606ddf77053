"""Writing a Llama for two kinds of engines: as a folder of safetensors, and as a GGUF."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ("write_folder", "write_gguf")

_NORMAL, _CONTROL = 1, 3
"""Token types of the GGUF format."""


def write_folder(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model of transformers with its tokenizer; the chat template is in the tokenizer's config."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder, save_jinja_files=False)


def write_gguf(model: Any, tokenizer: Any, path: Path) -> None:
    """
    Write a Llama of transformers with 32-bit weights.

    Args:
        model: A `LlamaForCausalLM`.
        tokenizer: A fast tokenizer, byte-level BPE, with a chat template.
        path: The file to write.
    """
    gguf: Any = import_module("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    _add_config(writer, model.config)
    _add_tokenizer(writer, tokenizer, model.config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    heads = {
        "q_proj.weight": model.config.num_attention_heads,
        "k_proj.weight": model.config.num_key_value_heads,
    }
    for name, tensor in model.state_dict().items():
        weights = tensor.float().numpy()
        count = next((count for end, count in heads.items() if name.endswith(end)), None)
        if count is not None:
            weights = _interleaved(weights, count)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _interleaved(weights: Any, heads: int) -> Any:
    """Reorder a projection's rows: llama.cpp rotates neighbours, transformers the halves of a head."""
    rows, columns = weights.shape
    halves = weights.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def _add_config(writer: Any, config: Any) -> None:
    head_size = config.hidden_size // config.num_attention_heads
    writer.add_name(config.name_or_path or "model")
    writer.add_file_type(0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def _add_tokenizer(writer: Any, tokenizer: Any, vocab_size: int) -> None:
    special = set(tokenizer.all_special_ids)
    texts = {token_id: text for text, token_id in tokenizer.get_vocab().items()}
    model = import_module("json").loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([texts[token_id] for token_id in range(vocab_size)])
    writer.add_token_types([_CONTROL if n in special else _NORMAL for n in range(vocab_size)])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)
