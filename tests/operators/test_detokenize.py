"""`operators.detokenize`."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators import detokenize, stop_on_text
from operators.authoring import merge_chunks
from rx_backend import LLMEngineOutput
from tests.examples import examples
from tests.operators._help import pushed
from tests.tokenizer import END, byte_tokenizer, fallback_tokenizer

TOKENIZER = byte_tokenizer()


def run(
    chunks: list[LLMEngineOutput], *operators: Any, tokenizer: Any = TOKENIZER, **options: Any
) -> list[LLMEngineOutput]:
    seen = pushed(chunks, detokenize(tokenizer, **options), *operators)
    assert seen.end == "completed"
    return seen.items


def in_chunks(ids: list[int], sizes: list[int]) -> list[LLMEngineOutput]:
    """Cut token ids into chunks of these sizes; the last has the finish reason."""
    chunks: list[LLMEngineOutput] = []
    while ids:
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(LLMEngineOutput(ids[:size]))
        ids = ids[size:]
    return [*chunks, LLMEngineOutput.stop()]


@examples(200)
@given(st.lists(st.integers(0, END), max_size=30), st.lists(st.integers(1, 5), min_size=1))
def test_the_texts_add_up_to_the_text_of_all_tokens(ids: list[int], sizes: list[int]) -> None:
    """However the tokens come, valid UTF-8 or not, with special tokens among them."""
    chunks = run(in_chunks(ids, sizes))
    assert "".join(chunk.text or "" for chunk in chunks) == TOKENIZER.decode(ids)
    assert [token_id for chunk in chunks for token_id in chunk.token_ids] == ids
    for chunk in chunks[:-1]:
        assert len(chunk.tokens or []) == len(chunk.token_ids)
        assert "".join(text or "" for text in chunk.tokens or []) == chunk.text


@given(st.text("a\n\0é漢�😀\U0010ffff", max_size=20), st.lists(st.integers(1, 5), min_size=1))
def test_a_character_is_never_split(text: str, sizes: list[int]) -> None:
    """A client that prints each text as it comes sees no replacement character."""
    chunks = run(in_chunks(list(text.encode()), sizes))
    assert "".join(chunk.text or "" for chunk in chunks) == text
    if "�" not in text:
        assert not any("�" in (chunk.text or "") for chunk in chunks)


def test_an_incomplete_character_comes_with_the_terminal() -> None:
    """As the replacement character, on a terminal with tokens and on a bare one."""
    broken = LLMEngineOutput(list("aé".encode()[:-1]))
    assert [chunk.text for chunk in run([broken, LLMEngineOutput.stop()])] == ["a", "�"]
    last = LLMEngineOutput.length().with_tokens(list("aé".encode()[:-1]))
    assert [(chunk.text, chunk.tokens) for chunk in run([last])] == [("a�", ["a", "�"])]


def test_invalid_utf_8_does_no_harm() -> None:
    """In a vocabulary with byte tokens: a newline is one, and then the model breaks a character off."""
    tokenizer = fallback_tokenizer("▁a", "▁b")
    ids = [256, ord("\n"), 0xF0, 0x9F, 257, 257, *"\n😀".encode(), 256]
    chunks = run([LLMEngineOutput([token_id]) for token_id in ids], tokenizer=tokenizer)
    texts = [chunk.text for chunk in chunks]
    assert texts == ["a", "\n", "", "", "�� b", " b", "\n", "", "", "", "😀", " a"]


@given(st.lists(st.sampled_from([ord("h"), *"😀".encode(), 256, 257]), max_size=20))
def test_any_sequence_of_byte_tokens_has_a_text(ids: list[int]) -> None:
    """No order of tokens is a failure, and no word is lost."""
    tokenizer = fallback_tokenizer("▁a", "▁b")
    chunks = run(in_chunks(ids, [1]), tokenizer=tokenizer)
    assert [token_id for chunk in chunks for token_id in chunk.token_ids] == ids
    words = {256: "a", 257: "b"}
    text = "".join(chunk.text or "" for chunk in chunks)
    assert [letter for letter in text if letter in "ab"] == [words[n] for n in ids if n > 255]


BROKEN = st.sampled_from([0x80, 0xFF, 0xE2, 0x82, 0xF0, 0x9F])
BYTES = st.sampled_from([ord("h"), *"é😀".encode(), END])


@examples(200)
@given(st.lists(BROKEN, min_size=30, max_size=80), st.lists(BROKEN | BYTES, max_size=40))
def test_a_long_run_of_invalid_utf_8(broken: list[int], more: list[int]) -> None:
    """The texts make up the text of all tokens there too, wherever a character begins."""
    chunks = run(in_chunks(broken + more, [1]))
    assert "".join(chunk.text or "" for chunk in chunks) == TOKENIZER.decode(broken + more)


@pytest.mark.parametrize("tokenizer", [TOKENIZER, fallback_tokenizer("▁a")])
@pytest.mark.parametrize("broken", [[0xFF], [0xF0], [0x80], [0xF0, 0x9F], [0xE2, 0x82, 0xFF]])
def test_invalid_utf_8_is_not_held_forever(tokenizer: Any, broken: list[int]) -> None:
    """Each token costs as much as what is held; what follows them is intact."""
    ids = broken * 40
    chunks = run([LLMEngineOutput([token_id]) for token_id in [*ids, *b"ok"]], tokenizer=tokenizer)
    silent = 0
    for chunk in chunks:
        silent = 0 if chunk.text else silent + 1
        assert silent <= 32
    text = "".join(chunk.text or "" for chunk in chunks)
    if tokenizer is TOKENIZER:
        assert text == TOKENIZER.decode([*ids, *b"ok"])
    assert set(text) <= set("\ufffdok")


def test_answers_do_not_mix() -> None:
    """The tokens of a character of one answer may come among those of another."""
    one, two = "é".encode(), "ü".encode()
    ids = [(0, one[0]), (1, two[0]), (1, two[1]), (0, one[1])]
    chunks = run([LLMEngineOutput([token_id], index=index) for index, token_id in ids])
    assert [chunk.text for chunk in chunks] == ["", "", "ü", "é"]


def test_chunks_with_text_are_unchanged() -> None:
    """And so is a chunk without tokens; the engine's own chunk is not changed."""
    given_text, handshake = LLMEngineOutput([97], text="A"), LLMEngineOutput()
    assert run([handshake, given_text]) == [LLMEngineOutput(), LLMEngineOutput([97], text="A")]
    bare = LLMEngineOutput([97])
    assert run([bare])[0].text == "a"
    assert bare == LLMEngineOutput([97])


def test_a_later_stop_text_cuts_between_tokens() -> None:
    """The tokens of the stop text are left out, and those before it stay."""
    chunks = run([LLMEngineOutput(list(b"one##two")), LLMEngineOutput.stop()], stop_on_text("##"))
    assert [(chunk.text, bytes(chunk.token_ids)) for chunk in chunks] == [("one", b"one")]
    assert chunks[-1].stop_reason == "##"


def test_its_chunks_can_be_merged() -> None:
    """One whose text is held back too."""
    chunks = run([LLMEngineOutput([byte]) for byte in "aé".encode()])
    merged, count = merge_chunks(chunks)
    assert (merged[0].text, bytes(merged[0].token_ids).decode(), count) == ("aé", "aé", 3)


@pytest.mark.parametrize("skip", [True, False])
def test_special_tokens_can_be_kept(skip: bool) -> None:
    """For a client that looks for them."""
    (chunk,) = run([LLMEngineOutput([END])], skip_special_tokens=skip)
    assert chunk.text == ("" if skip else "<end>")
