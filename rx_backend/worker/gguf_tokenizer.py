"""The tokenizer in a GGUF file, as the files that a frontend reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from rx_backend.extras import import_extra
from rx_backend.worker.bad_setting import BadSetting

__all__ = ("gguf_tokenizer_files",)

_CONTROL, _USER_DEFINED = 3, 4

# How text is split before merges are applied, by `tokenizer.ggml.pre`. A different split would mean
# different tokens, so an unknown one is refused.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def gguf_tokenizer_files(path: Path) -> dict[str, bytes]:
    """
    Return the tokenizer in a GGUF file as files: names and contents, deterministic for a model.

    They include its chat template, its special tokens and the ids that end an answer. Needs the
    packages ``gguf`` and ``tokenizers``.

    Raises:
        BadSetting: It can't be read, its kind of tokenizer is not supported, or a package is
            missing.
    """
    gguf, tokenizers = _import("gguf"), _import("tokenizers")
    try:
        return _files(gguf.GGUFReader(str(path)), tokenizers, path)
    except BadSetting:
        raise
    except Exception as error:
        # Both packages raise arbitrary errors for a damaged file.
        raise BadSetting(f"{path}: can't be read as GGUF: {error!r}") from error


def _files(reader: Any, tokenizers: Any, path: Path) -> dict[str, bytes]:
    def field(name: str, default: Any = None) -> Any:
        found = reader.get_field(name)
        return default if found is None else found.contents()

    kind, pre = field("tokenizer.ggml.model"), field("tokenizer.ggml.pre")
    cut = _CUTS.get(pre) if kind == "gpt2" else None
    if cut is None:
        raise BadSetting(
            f"{path}: can't convert its tokenizer (model {kind}, pre {pre}), expected model gpt2 and "
            f"one of pre {', '.join(_CUTS)}: name the model's tokenizer by --tokenizer"
        )
    tokenizer = _tokenizer(tokenizers, cut, pre, field)
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        **{name: msgspec.json.encode(content) for name, content in _settings(field).items()},
    }


def _tokenizer(
    tokenizers: Any, cut: Callable[[Any], Any], pre: str, field: Callable[..., Any]
) -> Any:
    texts: list[str] = field("tokenizer.ggml.tokens")
    merges = [tuple(pair.split(" ", 1)) for pair in field("tokenizer.ggml.merges", [])]
    result = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            {text: token_id for token_id, text in enumerate(texts)},
            merges,
            ignore_merges=pre == "llama-bpe",
        )
    )
    result.pre_tokenizer = cut(tokenizers)
    result.decoder = tokenizers.decoders.ByteLevel()
    if pre == "qwen2":
        result.normalizer = tokenizers.normalizers.NFC()
    types = field("tokenizer.ggml.token_type", [])
    for text, type_ in zip(texts, types, strict=False):
        added = tokenizers.AddedToken(text, normalized=False, special=type_ == _CONTROL)
        if type_ == _CONTROL:
            result.add_special_tokens([added])
        elif type_ == _USER_DEFINED:
            result.add_tokens([added])
    bos = field("tokenizer.ggml.bos_token_id")
    if bos is not None and field("tokenizer.ggml.add_bos_token", default=False):
        result.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{texts[bos]} $A", special_tokens=[(texts[bos], bos)]
        )
    return result


def _settings(field: Callable[..., Any]) -> dict[str, dict[str, Any]]:
    """Return the other files: what the frontend needs to know about model and template."""
    texts: list[str] = field("tokenizer.ggml.tokens")
    ids = {name: field(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot")}
    architecture = field("general.architecture")
    length = field(f"{architecture}.context_length")
    ends = list(dict.fromkeys(end for end in (ids["eos"], ids["eot"]) if end is not None))
    tokens = {f"{name}_token": ids[name] for name in ("bos", "eos") if ids[name] is not None}
    return {
        "tokenizer_config.json": _known(
            tokenizer_class="PreTrainedTokenizerFast",
            chat_template=field("tokenizer.chat_template"),
            model_max_length=length,
            **{name: texts[token_id] for name, token_id in tokens.items()},
        ),
        "config.json": _known(
            model_type=architecture,
            # The frontend requires a name, but ignores it.
            architectures=[f"{architecture.capitalize()}ForCausalLM"],
            max_position_embeddings=length,
            vocab_size=len(texts),
            bos_token_id=ids["bos"],
            eos_token_id=ends,
        ),
        "generation_config.json": _known(bos_token_id=ids["bos"], eos_token_id=ends),
    }


def _known(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _by_pattern(digits: str) -> Callable[[Any], Any]:
    def cut(tokenizers: Any) -> Any:
        steps = tokenizers.pre_tokenizers
        pattern = tokenizers.Regex(_WORDS.format(digits=digits))
        return steps.Sequence(
            [
                steps.Split(pattern, "isolated"),
                steps.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    return cut


def _byte_level(tokenizers: Any) -> Any:
    return tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)


def _single_digits(tokenizers: Any) -> Any:
    digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
    return tokenizers.pre_tokenizers.Sequence([digits, _byte_level(tokenizers)])


_CUTS: Mapping[str, Callable[[Any], Any]] = {
    "gpt-2": _byte_level,
    "smollm": _single_digits,
    "qwen2": _by_pattern(""),
    "llama-bpe": _by_pattern("{1,3}"),
}


def _import(name: str) -> Any:
    hint = "; or name a tokenizer's folder by --tokenizer"
    try:
        return import_extra(
            name, "gguf", package=name, needed_by="the tokenizer of a GGUF file", hint=hint
        )
    except ImportError as error:
        raise BadSetting(str(error)) from error
