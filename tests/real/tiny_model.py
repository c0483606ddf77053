"""A Llama of 2.5 MB with random weights and a real tokenizer, for engines that take no mocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.real.model_files import write_folder, write_gguf

__all__ = ("CONTEXT_LENGTH", "RealModel", "make_tiny_model")

CONTEXT_LENGTH = 2048
"""In tokens, prompt and answer together."""

_VOCAB_SIZE = 512
_SEED = 12
# Wide enough that answers vary, and that the likeliest token stands out beyond rounding.
_DEVIATION = 0.2
_END = "<|im_end|>"
_SPECIAL = (_END, "<|im_start|>")
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TRAINING = (
    "the token of a stream is the next word that the engine has for the one who asks",
    "a request and its answer, a prompt and its tokens, one after another until the end",
)


@dataclass(frozen=True)
class RealModel:
    """
    A model on disk.

    Attributes:
        folder: Its safetensors, config and tokenizer.
        gguf: The same as a GGUF.
        vocab_size: Token ids are below this.
        context_length: Maximum of prompt and answer together, in tokens.
    """

    folder: Path
    gguf: Path
    vocab_size: int
    context_length: int

    def prompts(self, count: int, length: int = 12) -> list[list[int]]:
        """Return prompts of ordinary token ids, the same ones each time, all different."""
        first = len(_SPECIAL)
        span = self.vocab_size - first
        return [
            [first + (31 * n + 17 * place * place + 7 * place) % span for place in range(length)]
            for n in range(count)
        ]

    def expected(self, prompt: Sequence[int], max_tokens: int) -> list[int]:
        """Return the greedy answer that transformers' plain `generate` gives, end of text included."""
        key = (tuple(prompt), max_tokens)
        if key not in self._answers:
            torch: Any = import_module("torch")
            ids = torch.tensor([list(prompt)])
            output = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=max_tokens,
                pad_token_id=0,
            )
            self._answers[key] = output[0, len(prompt) :].tolist()
        return self._answers[key]

    @cached_property
    def _answers(self) -> dict[tuple[tuple[int, ...], int], list[int]]:
        return {}

    @cached_property
    def _model(self) -> Any:
        # Several threads on a shared machine wait for each other most of the time.
        import_module("torch").set_num_threads(1)
        return import_module("transformers").AutoModelForCausalLM.from_pretrained(
            self.folder, dtype="float32"
        )


def make_tiny_model(folder: Path) -> RealModel:
    """Write the model into *folder*: hidden size 128, 4 heads of which 2 have keys, 2 layers."""
    transformers: Any = import_module("transformers")
    torch: Any = import_module("torch")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=_trained_tokenizer(),
        eos_token=_END,
        additional_special_tokens=list(_SPECIAL[1:]),
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    config = transformers.LlamaConfig(
        vocab_size=_VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_LENGTH,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
        dtype="float32",
    )
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        model = transformers.LlamaForCausalLM(config).eval()
        for name, weights in model.named_parameters():
            if "norm" not in name:
                torch.nn.init.normal_(weights, std=_DEVIATION)
        # The special tokens are never the likeliest, so that no greedy answer ends early.
        torch.nn.init.zeros_(model.lm_head.weight[: len(_SPECIAL)])
    write_folder(model, tokenizer, folder / "tiny")
    write_gguf(model, tokenizer, folder / "tiny.gguf")
    return RealModel(folder / "tiny", folder / "tiny.gguf", _VOCAB_SIZE, CONTEXT_LENGTH)


def _trained_tokenizer() -> Any:
    """Train a byte-level BPE on a few sentences; ids that they don't fill get texts of their own."""
    tokenizers: Any = import_module("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=_VOCAB_SIZE,
        special_tokens=list(_SPECIAL),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=1,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TRAINING, trainer)
    tokenizer.add_tokens([f"#{n}" for n in range(_VOCAB_SIZE - tokenizer.get_vocab_size())])
    return tokenizer
