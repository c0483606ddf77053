"""The models that the tests of engines ask."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest

from tests.real.tiny_model import RealModel

pytestmark = pytest.mark.needs("transformers", "gguf")


def test_the_tiny_model_answers_at_length(tiny_model: RealModel) -> None:
    """With many different tokens, none of them special, and one answer a prompt."""
    answers = [tiny_model.expected(prompt, 64) for prompt in tiny_model.prompts(8)]
    assert {len(answer) for answer in answers} == {64}
    assert len({tuple(answer) for answer in answers}) == 8
    assert min(min(answer) for answer in answers) > 1
    assert min(len(set(answer)) for answer in answers) > 30


def test_the_tiny_model_reads_and_writes_text(tiny_model: RealModel) -> None:
    """Any text, and one token of the vocabulary for each id."""
    transformers: Any = import_module("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model.folder)
    text = "the token of a stream, né 🦀"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer) == tiny_model.vocab_size
    message = {"role": "user", "content": "hi"}
    assert "hi<|im_end|>" in tokenizer.apply_chat_template([message], tokenize=False)
