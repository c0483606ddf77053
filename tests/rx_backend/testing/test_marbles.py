"""Marble lines: read, written, aligned; operators played by them."""

from __future__ import annotations

import pytest
import reactivex
from hypothesis import given
from hypothesis import strategies as st
from reactivex import Observable, abc
from reactivex import operators as ops
from reactivex.subject import Subject

from rx_backend import Annotated, LLMEngineOutput
from rx_backend.testing import (
    MarbleError,
    MarbleEvent,
    MarbleFailure,
    MarbleMismatch,
    Marbles,
    align_marbles,
    assert_marbles,
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
def test_an_invalid_line_is_shown(line: str, message: str) -> None:
    """What can't be read is an error that points at the place."""
    with pytest.raises(MarbleError) as caught:
        parse_marbles(line)
    assert message.replace("\\", "") in str(caught.value)


def test_signs_can_not_be_used_as_names() -> None:
    """A value can't be named like a sign."""
    with pytest.raises(MarbleError, match="'#' is the sign of 'error'"):
        parse_marbles("-#", {"#": 1})


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
    assert render_marbles(seen) == "?za(?#)"


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
    """Writing what was read makes the line again."""
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


# Operators.


def test_an_operator_is_checked_by_its_lines() -> None:
    """Items, the end and the subscription come at their frames; a frame is a second of the clock."""
    result = assert_marbles(
        ops.map(lambda number: number + 1),
        source="-a-b-|",
        result="-b-c-|",
        values={"a": 1, "b": 2, "c": 3},
        subscriptions=["^----!"],
    )
    assert (result.marbles, result.items, result.error) == ("-b-c-|", [2, 3], None)
    test = Marbles({"0": 1.0, "1": 3.0})
    test.expect(test.cold("-a-b-|").pipe(ops.map(lambda _: test.clock())), "-0-1-|")


def test_a_mismatch_shows_the_lines_aligned() -> None:
    """The message has source, expected and actual, aligned, and each difference."""
    with pytest.raises(MarbleMismatch) as caught:
        assert_marbles(
            ops.flat_map(lambda item: reactivex.of(item, item)),
            source="-a-b-|",
            result="-(aa)-c-|",
        )
    assert str(caught.value).splitlines() == [
        "marbles differ",
        "source    -a   -b   -|",
        "expected  -(aa)-c   -|",
        "actual    -(aa)-(bb)-|",
        "expected next 'c' at frame 3, got next 'b' at frame 3",
        "expected completed at frame 5, got next 'b' at frame 3",
        "expected nothing more, got completed at frame 5",
    ]
    with pytest.raises(MarbleMismatch, match="subscriptions differ"):
        assert_marbles(ops.take(1), source="-a-|", result="-(a|)", subscriptions=["^--!"])


@pytest.mark.parametrize(
    ("source", "result", "difference"),
    [
        ("-a-b-|", "-a-b-", "expected nothing more, got completed at frame 5"),
        ("-a-b-", "-a-b-|", "expected completed at frame 5, got nothing more"),
        ("-a-b-|", "-a-b--|", "expected completed at frame 6, got completed at frame 5"),
        ("-a-b-|", "-a-b-#", "expected error at frame 5, got completed at frame 5"),
    ],
)
def test_ends_are_compared(source: str, result: str, difference: str) -> None:
    """An end too many, too late, of another kind or missing is a difference."""
    test = Marbles()
    with pytest.raises(MarbleMismatch, match=difference):
        test.expect(test.cold(source), result)


def test_errors_are_compared() -> None:
    """``#`` is the source's own error, unless the test names another; without one in it, any."""
    assert isinstance(assert_marbles(ops.take(5), source="-a#", result="-a#").error, MarbleFailure)
    boom = KeyError("boom")
    assert assert_marbles(ops.take(5), source="-a#", result="-a#", error=boom).error is boom
    swap = ops.catch(lambda error, source: reactivex.throw(KeyError("other")))
    with pytest.raises(MarbleMismatch, match="expected error MarbleFailure"):
        assert_marbles(swap, source="-a#", result="-a#")
    assert_marbles(swap, source="-a#", result="-a#", result_error=KeyError)
    assert_marbles(swap, source="-a#", result="-a#", result_error=KeyError("other"))
    for error in (boom, LookupError("other")):
        with pytest.raises(MarbleMismatch, match=f"expected error {type(error).__name__}"):
            assert_marbles(swap, source="-a#", result="-a#", result_error=error)

    def fail(item: object) -> object:
        raise ValueError(item)

    assert_marbles(ops.map(fail), source="-a-|", result="-#", subscriptions=["^!"])
    with pytest.raises(MarbleMismatch):
        assert_marbles(ops.map(fail), source="-a-|", result="-#", result_error=KeyError)


def test_drops() -> None:
    """``!`` disposes before anything of its frame arrives, in a group while an item is handed out."""
    for hot in (True, False):
        assert_marbles(ops.take(9), source="-ab-c|", result="-a!", subscriptions=["^-!"], hot=hot)
    assert_marbles(ops.take(9), source="-(abc)|", result="-(ab!)", subscriptions=["^!"])
    assert_marbles(ops.take(9), source="-a-b-|", result="-a-b-!")
    assert_marbles(ops.take(9), source="-a-b-|", result="-a-(b!)")
    with pytest.raises(MarbleMismatch):
        assert_marbles(ops.filter(lambda item: item != "b"), source="-a-b-|", result="-a-(b!)")
    test = Marbles({"a": 1})
    result = test.record(test.cold("-a-a-a-|"), drop="---!")
    assert result.marbles == "-a-!"
    assert [str(event) for event in result.events] == ["next 1 at frame 1", "drop at frame 3"]


def test_a_hot_source_plays_without_subscribers() -> None:
    """A hot line begins at ``^``, and late subscribers miss its beginning; a cold one waits for them."""
    assert_marbles(ops.take(9), source="xy^a-(bc)|", result="-a-(bc)|", hot=True)
    assert_marbles(ops.repeat(2), source="-a|", result="-a-a|")
    assert_marbles(ops.take(9), source="a-b|", result="a-b|", hot=True)
    for is_hot, result, subscription in (
        (True, "----c|", "--^--!"),
        (False, "---ab-c|", "--^----!"),
    ):
        test = Marbles()
        source = test.hot("-ab-c|") if is_hot else test.cold("-ab-c|")
        late = reactivex.timer(2.0).pipe(ops.flat_map(source))
        test.expect(late, result)
        assert source.subscriptions == [subscription]


def test_several_sources_share_the_time() -> None:
    """Each records its own subscriptions, and a mismatch numbers them; subjects can be mixed in."""
    test = Marbles()
    source, other = test.cold("-a-b-c-|"), test.hot("---x")
    test.expect(source.pipe(ops.merge(other)), "-a-(xb)-c-")
    assert (source.subscriptions, other.subscriptions) == (["^------!"], ["^"])
    test = Marbles()
    source, other = test.cold("-a|"), test.hot("-x")
    with pytest.raises(MarbleMismatch, match=r"source 1  -a\|\nsource 2  -x\nexpected  --\n"):
        test.expect(source.pipe(ops.take_until(other)), "--")
    subject: Subject[str] = Subject()
    test = Marbles()
    test.cold("-a").subscribe(subject)
    test.expect(subject, "-a")


def test_events_that_a_line_can_not_show_are_errors() -> None:
    """Half a frame, a drop in a source, a beginning elsewhere, and a second run are errors."""
    with pytest.raises(MarbleError, match=r"at 1.5 s, between two frames"):
        assert_marbles(ops.delay(0.5), source="-a-|", result="-a-|")
    for hot in (True, False):
        with pytest.raises(MarbleError, match="'!' makes no sense"):
            assert_marbles(ops.take(1), source="-a!", result="-a", hot=hot)
    test = Marbles()
    with pytest.raises(MarbleError, match=r"'\^' makes no sense"):
        test.cold("^-a")
    source = test.cold("-a|")
    with pytest.raises(MarbleError, match=r"'\^' makes no sense"):
        test.expect(source, "^-a")
    test.expect(source, "-a|")
    with pytest.raises(MarbleError, match="plays once"):
        test.expect(source, "-a|")


def test_streams_of_any_length() -> None:
    """An endless one is played for a while; what a subscription emits is in frame 0, however much."""
    ticks: Observable[int] = reactivex.interval(1.0)
    values = {str(number): number for number in range(10)}
    assert Marbles(values).expect(ticks, "-012!").items == [0, 1, 2]
    assert len(Marbles(values).record(ticks).items) == 100
    many = Marbles().record(reactivex.of(*range(300)))
    assert {event.frame for event in many.events} == {0}
    assert len(many.items) == 300


def test_an_exception_in_a_subscriber_is_not_hidden() -> None:
    """An exception that flies back into a hot source comes out of the test."""

    def forgetful(source: Observable[object]) -> Observable[object]:
        def subscribe(
            observer: abc.ObserverBase[object], scheduler: abc.SchedulerBase | None = None
        ) -> abc.DisposableBase:
            def fail(item: object) -> None:
                raise ZeroDivisionError(item)

            return source.subscribe(fail, observer.on_error, observer.on_completed)

        return Observable(subscribe)

    with pytest.raises(ZeroDivisionError) as raised:
        assert_marbles(forgetful, source="-a-|", result="-a-|", hot=True)
    assert raised.value.__context__ is None
