"""The model of a worker, its tokenizer and its name: three things that the command tells apart."""

from __future__ import annotations

import json
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from rx_backend import InvalidArgument
from rx_backend.worker.gguf_tokenizer import gguf_tokenizer_files
from rx_backend.worker.model_files import find_tokenizer, write_model_files
from tests.rx_backend.worker._processes import START_S, serve
from tests.rx_backend.worker.engines import MODEL

pytestmark = pytest.mark.timeout(90)

FAST = ("--grace-s", "0")
TEXTS = [
    "The capital of France is",
    "In 12345 years, it's   über 日本\n\n  x\r\n",
    "<|im_start|>user\nWe'LL see 2+2=4<|im_end|>",
    "",
]


def card(folder: Path) -> dict[str, Any]:
    """Read the only card in file discovery."""
    (file,) = (folder / "discovery" / "v1" / "mdc").iterdir()
    return json.loads(file.read_text())["card_json"]


def model_in(folder: Path, name: str = "model", *, tokenizer: bool = True) -> Path:
    (folder / name).mkdir()
    return write_model_files(folder / name) if tokenizer else folder / name


@pytest.mark.needs("dynamo")
def test_engine_and_clients_have_separate_model_names(tmp_path: Path) -> None:
    """The engine its path and arguments, the card the name, the parsers and the tokenizer."""
    model = model_in(tmp_path)
    flags = ["--model-path", str(model), "--engine-arg", "size=[1]", "--served-model-name", "mine"]
    parsers = ["--tool-call-parser", "hermes"]
    with serve(
        tmp_path, "ModelEngine", *flags, *parsers, *FAST, DYN_REASONING_PARSER="qwen3"
    ) as it:
        assert it.line("model", START_S).strip() == f"model {model} size [1]"
        it.line("serving mine", START_S)
        found = card(tmp_path)
        assert found["display_name"] == "mine"
        assert str(model / "tokenizer.json") in json.dumps(found)
        runtime = found["runtime_config"]
        assert (runtime["tool_call_parser"], runtime["reasoning_parser"]) == ("hermes", "qwen3")


@pytest.mark.needs("dynamo")
def test_a_tokenizer_of_its_own(tmp_path: Path) -> None:
    """A model without one is served with another folder's; arguments behind -- are the engine's."""
    model, other = model_in(tmp_path, tokenizer=False), model_in(tmp_path, "other")
    flags = ["--model-path", str(model), "--tokenizer", str(other), *FAST]
    with (
        serve(tmp_path / "one", "ModelEngine", *flags) as one,
        serve(tmp_path / "two", "ModelEngine", *FAST, "--", "--size", "3") as two,
    ):
        one.line("serving", START_S)
        assert str(other / "tokenizer.json") in json.dumps(card(tmp_path / "one"))
        two.line("model None size ['--size', '3']", START_S)
        two.line(f"serving {MODEL}", START_S)


@pytest.mark.needs("dynamo")
def test_a_model_without_a_tokenizer_is_rejected(tmp_path: Path) -> None:
    """
    A placeholder would turn its text into nonsense; nothing was served, and all is cleaned up.

    The model may be known by an option, by an argument's value, or because the engine says that it
    needs a tokenizer, where another engine behind it too.
    """
    model = model_in(tmp_path, tokenizer=False)
    cases = [
        ("ModelEngine", "--model-path", str(model)),
        ("ModelEngine", "--engine-arg", f"model={model}"),
        ("RemoteEngine",),
        ("remote_or_not",),
    ]
    with ExitStack() as stack:
        enter = stack.enter_context
        refused = [enter(serve(tmp_path / str(at), *case, *FAST)) for at, case in enumerate(cases)]
        for at, served in enumerate(refused):
            assert served.ended(START_S) == 2
            (told,) = (line for line in served.seen if "--tokenizer" in line)
            assert "no tokenizer was found for the model" in told
            assert served.count("cleanup") == (2 if cases[at] == ("remote_or_not",) else 1)
            assert not (tmp_path / str(at) / "discovery" / "v1" / "instances").exists()
    with serve(
        tmp_path, "RemoteEngine", "--tokenizer", str(model_in(tmp_path, "own")), *FAST
    ) as it:
        it.line("serving", START_S)


def gguf_model(path: Path, pre: str, kind: str = "gpt2", *, add_bos: bool = False) -> Any:
    """Write a GGUF file with a small trained tokenizer; give that tokenizer."""
    gguf: Any = import_module("gguf")
    tokenizers: Any = import_module("tokenizers")
    steps = tokenizers.pre_tokenizers
    byte_level = steps.ByteLevel(add_prefix_space=False)
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = byte_level
    if pre == "smollm":
        made.pre_tokenizer = steps.Sequence([steps.Digits(individual_digits=True), byte_level])
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=steps.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["The capital of France is 12345 12 years away, 日本"] * 4, trainer)
    model = json.loads(made.to_str())["model"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(2048)
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(pre)
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|im") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(add_bos)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return made


@pytest.mark.needs("gguf", "tokenizers")
@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "qwen2", "llama-bpe"])
def test_a_gguf_file_has_its_tokenizer_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pre: str
) -> None:
    """It makes the same ids as the one it was written from, and brings template and end token."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    original = gguf_model(tmp_path / "model.gguf", pre)
    folder = Path(find_tokenizer(tmp_path / "model.gguf") or "")
    assert folder.parent == tmp_path / "cache" / "rx-backend"
    assert find_tokenizer(tmp_path / "model.gguf") == str(folder)
    read = import_module("tokenizers").Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in TEXTS:
        ids = read.encode(text).ids
        assert read.decode(ids, skip_special_tokens=False) == text
        if pre in {"gpt-2", "smollm"}:
            assert ids == original.encode(text).ids
    settings = {file.name: json.loads(file.read_bytes()) for file in folder.glob("*.json")}
    assert "<|im_start|>" in settings["tokenizer_config.json"]["chat_template"]
    assert settings["tokenizer_config.json"]["eos_token"] == "<|im_end|>"
    assert settings["config.json"]["eos_token_id"] == [1]
    assert settings["config.json"]["max_position_embeddings"] == 2048


@pytest.mark.needs("gguf", "tokenizers")
def test_a_gguf_tokenizer_that_can_not_be_converted_is_rejected(tmp_path: Path) -> None:
    """It is named with what is known; a file that is none says so; a begin token is added."""
    path = tmp_path / "model.gguf"
    for pre, kind in (("tekken", "gpt2"), ("default", "llama")):
        gguf_model(path, pre, kind)
        with pytest.raises(InvalidArgument, match=f"model {kind}, pre {pre}.*--tokenizer"):
            gguf_tokenizer_files(path)
    gguf_model(path, "gpt-2", add_bos=True)
    text = gguf_tokenizer_files(path)["tokenizer.json"].decode()
    assert import_module("tokenizers").Tokenizer.from_str(text).encode("The").ids[0] == 0
    whole = path.read_bytes()
    for damaged in (b"none", whole[:4], whole[:24], whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(InvalidArgument, match="can't be read as GGUF"):
            gguf_tokenizer_files(path)


@pytest.mark.needs("dynamo", "gguf", "tokenizers")
def test_a_gguf_model_is_served_with_its_tokenizer(tmp_path: Path) -> None:
    """The frontend makes text of the engine's ids by it, without any other option."""
    original = gguf_model(tmp_path / "model.gguf", "smollm")
    path = str(tmp_path / "model.gguf")
    with serve(tmp_path, "ModelEngine", "--model-path", path, "--frontend", *FAST) as served:
        served.line("curl -N", START_S)
        with served.client() as client:
            answer = client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "The capital is 12"}]
            )
        ids = original.encode("<|im_start|>The capital is 12").ids
        served.line(f"prompt {ids} [1]")
    assert answer.choices[0].message.content == "The capital is 12"
