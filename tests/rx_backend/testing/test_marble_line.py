"""Marble lines: read, written, aligned."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rx_backend import Annotated, LLMEngineOutput
from rx_backend.testing import (
    MarbleError,
    MarbleEvent,
    align_marbles,
    parse_marbles,
    render_marbles,
)

FAILURE = ValueError("boom")


def events(line: str) -> list[tuple[int, str, object]]:
    read = parse_marbles(line, {"a": 1, "b": [2]}, FAILURE)
    return [(event.frame, event.kind, event.value) for event in read.events]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", []),
        ("---", []),
        ("a-b|", [(0, "next", 1), (2, "next", [2]), (3, "completed", None)]),
        ("-7#", [(1, "next", "7"), (2, "error", FAILURE)]),
        ("-X", [(1, "error", FAILURE)]),
        (
            "-(ab)b(|)",
            [(1, "next", 1), (1, "next", [2]), (2, "next", [2]), (3, "completed", None)],
        ),
        ("c^-!", [(0, "next", "c"), (1, "subscribe", None), (3, "drop", None)]),
        (" -  a ", [(1, "next", 1)]),
        ("-|--", [(1, "completed", None)]),
        (
            "-'word'('a'b)|",
            [(1, "next", "word"), (2, "next", 1), (2, "next", [2]), (3, "completed", None)],
        ),
    ],
)
def test_signs_mean_what_they_say(line: str, expected: list[tuple[int, str, object]]) -> None:
    """Each sign is one frame, a group is one frame, blanks are none."""
    assert events(line) == expected


def test_the_length_of_a_line_is_its_frames() -> None:
    """Idle frames at the end count; a group counts once."""
    assert parse_marbles("-(ab)--").frames == 4


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-a*b", "unexpected '*' in a marble line:\n  -a*b\n    ^"),
        ("-(a-b)", "unexpected '-'"),
        ("-((a))", r"unexpected '('"),
        ("-a)", "unexpected '\\)'"),
        ("-(ab", "group is not closed"),
        ("-'a b'", 'unexpected "\'"'),
        ("-|a", "nothing can follow the end"),
        ("-#|", "nothing can follow the end"),
        ("-!a", "nothing can follow the end"),
        ("^a^", "one subscription"),
    ],
)
def test_a_line_that_makes_no_sense_is_shown(line: str, message: str) -> None:
    """What can't be read is an error that points at the place."""
    with pytest.raises(MarbleError) as caught:
        parse_marbles(line)
    assert message.replace("\\", "") in str(caught.value)


def test_signs_are_no_names() -> None:
    """A value can't be named like a sign."""
    with pytest.raises(MarbleError, match="'X' is a sign"):
        parse_marbles("-X", {"X": 1})


def test_items_without_a_letter_are_question_marks() -> None:
    """What has no letter is ``?``, also where its own letter stands for something else."""
    seen = [
        MarbleEvent(0, "next", 5),
        MarbleEvent(1, "next", "z"),
        MarbleEvent(2, "next", "a"),
        MarbleEvent(3, "next", [2]),
        MarbleEvent(3, "error", FAILURE),
    ]
    assert render_marbles(seen, {"a": 1, "b": [2]}) == "?z?(b#)"


def test_preferred_letters_are_used_for_equal_items() -> None:
    """Of two letters for equal items the preferred one is written."""
    seen = [MarbleEvent(0, "next", 1)]
    assert render_marbles(seen, {"a": 1, "b": 1}) == "a"
    assert render_marbles(seen, {"a": 1, "b": 1}, prefer="b", frames=3) == "b--"


def test_items_that_cannot_be_compared_are_different() -> None:
    """An item whose comparison raises has no letter."""

    class Odd:
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            raise TypeError("not with me")

    assert render_marbles([MarbleEvent(0, "next", 1)], {"a": Odd()}) == "?"


def test_lines_are_aligned_frame_by_frame() -> None:
    """A group in one line moves the others apart, so that columns stay frames."""
    rows = {"source": "-a--b|", "expected": "-(xyz)-b|", "actual": "-a"}
    assert align_marbles(rows).splitlines() == [
        "source    -a    --b|",
        "expected  -(xyz)-b|",
        "actual    -a",
    ]


@given(
    st.lists(st.sampled_from(["-", "a", "7", "(ab)", "(aaa)"]), max_size=12),
    st.sampled_from(["", "|", "#", "(a|)", "!"]),
)
def test_a_line_survives_reading_and_writing(frames: list[str], end: str) -> None:
    """Writing what was read gives the line again."""
    line = "".join(frames) + end
    read = parse_marbles(line, {"a": 1}, FAILURE)
    assert render_marbles(read.events, {"a": 1}, frames=read.frames) == line


@pytest.mark.parametrize(
    ("item", "sign"),
    [
        (LLMEngineOutput(text="Hello"), "'Hello'"),
        (LLMEngineOutput([7], text=" world"), "'world'"),
        (LLMEngineOutput(text="!"), "'!'"),
        (Annotated(LLMEngineOutput(text="Hello")), "'Hello'"),
        (LLMEngineOutput(text="two words"), "?"),
        (LLMEngineOutput(text="it's"), "?"),
        (LLMEngineOutput(text=" "), "?"),
        (LLMEngineOutput(text="a"), "?"),
        (LLMEngineOutput(text="named"), "a"),
    ],
)
def test_a_chunk_of_text_is_its_word(item: object, sign: str) -> None:
    """Where its text is one word that stands for nothing else; a letter of its own goes first."""
    values = {"a": LLMEngineOutput(text="named")}
    line = render_marbles([MarbleEvent(1, "next", item), MarbleEvent(2, "completed")], values)
    assert line == f"-{sign}|"
    assert parse_marbles(line.replace("?", "b")).frames == 3


def test_words_are_aligned() -> None:
    """A word is one frame, also within a group."""
    rows = {"source": "-'Hello'b|", "result": "-a('x'b)|"}
    assert align_marbles(rows) == "source  -'Hello'b     |\nresult  -a      ('x'b)|"
