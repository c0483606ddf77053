"""Operators played by marble lines."""

from __future__ import annotations

import pytest
import reactivex
from reactivex import Observable, abc
from reactivex import operators as ops
from reactivex.subject import Subject

from rx_backend.testing import (
    MarbleError,
    MarbleFailure,
    MarbleMismatch,
    Marbles,
    assert_marbles,
)


def test_an_operator_is_what_its_lines_say() -> None:
    """Items, the end and the subscription come at their frames."""
    result = assert_marbles(
        ops.map(lambda number: number + 1),
        source="-a-b-|",
        result="-b-c-|",
        values={"a": 1, "b": 2, "c": 3},
        subscriptions=["^----!"],
    )
    assert result.marbles == "-b-c-|"
    assert result.items == [2, 3]
    assert result.error is None


def test_time_operators_run_in_frames() -> None:
    """One frame is one second for operators with timers."""
    assert_marbles(ops.delay(3.0), source="-a-b--|", result="----a-b--|")
    assert_marbles(ops.debounce(2.0), source="-a-bc----|", result="------c--|")


def test_a_mismatch_shows_the_lines_above_each_other() -> None:
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


@pytest.mark.parametrize(
    ("result", "difference"),
    [
        ("-a-b-", "expected nothing more, got completed at frame 5"),
        ("-a-b--|", "expected completed at frame 6, got completed at frame 5"),
        ("-a-b-|", None),
        ("-a-b-#", "expected error at frame 5, got completed at frame 5"),
        ("-a-b-!", "expected drop at frame 5, got completed at frame 5"),
    ],
)
def test_ends_are_compared(result: str, difference: str | None) -> None:
    """An end too many, too late or of another kind is a difference."""
    test = Marbles()
    source = test.cold("-a-b-|")
    if difference is None:
        test.expect(source, result)
    elif "!" in result:
        assert test.expect(source, result).marbles == result
    else:
        with pytest.raises(MarbleMismatch, match=difference):
            test.expect(source, result)


def test_a_source_error_is_the_one_expected() -> None:
    """``#`` in the result is the source's own error, unless the test says otherwise."""
    assert isinstance(assert_marbles(ops.take(5), source="-a#", result="-a#").error, MarbleFailure)
    boom = KeyError("boom")
    assert assert_marbles(ops.take(5), source="-a#", result="-a#", error=boom).error is boom
    swap = ops.catch(lambda error, source: reactivex.throw(KeyError("other")))
    with pytest.raises(MarbleMismatch, match="expected error MarbleFailure"):
        assert_marbles(swap, source="-a#", result="-a#")
    assert_marbles(swap, source="-a#", result="-a#", result_error=KeyError)
    assert_marbles(swap, source="-a#", result="-a#", result_error=KeyError("other"))
    with pytest.raises(MarbleMismatch, match="boom"):
        assert_marbles(swap, source="-a#", result="-a#", result_error=boom)


def test_an_operators_own_error_may_be_any() -> None:
    """Where the source has no error, ``#`` in the result is any, or the one that is named."""

    def fail(item: object) -> object:
        raise ValueError(item)

    assert_marbles(ops.map(fail), source="-a-|", result="-#", subscriptions=["^!"])
    with pytest.raises(MarbleMismatch):
        assert_marbles(ops.map(fail), source="-a-|", result="-#", result_error=KeyError)


def test_a_drop_comes_before_its_frame() -> None:
    """``!`` alone disposes before anything of that frame arrives."""
    assert_marbles(ops.take(9), source="-ab-c|", result="-a!", subscriptions=["^-!"])


def test_a_drop_in_a_group_comes_from_inside_the_item() -> None:
    """``(a!)`` disposes while the item is handed out; what comes after it in the frame does not."""
    assert_marbles(ops.take(9), source="-(abc)|", result="-(ab!)", subscriptions=["^!"])


def test_a_drop_that_never_comes_is_a_mismatch() -> None:
    """If the item to drop at does not arrive, nothing was dropped."""
    with pytest.raises(MarbleMismatch):
        assert_marbles(ops.filter(lambda item: item != "b"), source="-a-b-|", result="-a-(b!)")


def test_recording_without_expecting() -> None:
    """``record`` gives what came, also with a drop."""
    test = Marbles({"a": 1})
    result = test.record(test.cold("-a-a-a-|"), drop="---!")
    assert result.marbles == "-a-!"
    assert [str(event) for event in result.events] == ["next 1 at frame 1", "drop at frame 3"]


def test_a_hot_source_plays_without_listeners() -> None:
    """A hot line begins at ``^``; late subscribers miss what was before."""
    assert_marbles(ops.take(9), source="xy^a-b|", result="-a-b|", hot=True)
    assert_marbles(ops.take(9), source="a-b|", result="a-b|", hot=True)


@pytest.mark.parametrize(("kind", "result"), [("hot", "----c|"), ("cold", "---ab-c|")])
def test_a_late_subscriber(kind: str, result: str) -> None:
    """A cold line starts with its subscriber, of a hot one the beginning is missed."""
    test = Marbles()
    source = test.hot("-ab-c|") if kind == "hot" else test.cold("-ab-c|")
    test.expect(source.pipe(ops.delay_subscription(2.0, scheduler=test.scheduler)), result)
    assert source.subscriptions == ["--^--!" if kind == "hot" else "--^----!"]


def test_several_sources_share_the_time() -> None:
    """Sources of one test run on one clock, and record their own subscriptions."""
    test = Marbles()
    source, other = test.cold("-a-b-c-|"), test.hot("---x")
    test.expect(source.pipe(ops.merge(other)), "-a-(xb)-c-")
    assert source.subscriptions == ["^------!"]
    assert other.subscriptions == ["^"]


def test_several_sources_are_numbered_in_a_mismatch() -> None:
    """With several sources the message shows all of them."""
    test = Marbles()
    source, other = test.cold("-a|"), test.hot("-x")
    with pytest.raises(MarbleMismatch, match=r"source 1  -a\|\nsource 2  -x\nexpected  --\n"):
        test.expect(source.pipe(ops.take_until(other)), "--")


def test_the_clock_is_for_operators_that_take_one() -> None:
    """``clock`` gives the seconds of the frame."""
    test = Marbles({"0": 1.0, "1": 3.0})
    test.expect(test.cold("-a-b-|").pipe(ops.map(lambda _: test.clock())), "-0-1-|")


def test_wrong_subscriptions_are_a_mismatch() -> None:
    """The subscriptions asked for are compared."""
    with pytest.raises(MarbleMismatch, match="subscriptions differ"):
        assert_marbles(ops.take(1), source="-a-|", result="-(a|)", subscriptions=["^--!"])


def test_something_between_frames_is_an_error() -> None:
    """A line can't show half a frame, and says so."""
    with pytest.raises(MarbleError, match=r"at 1.5 s, between two frames"):
        assert_marbles(ops.delay(0.5), source="-a-|", result="-a-|")


@pytest.mark.parametrize("kind", ["cold", "hot"])
def test_a_source_has_no_drop(kind: str) -> None:
    """Only the consumer drops; in a source the sign makes no sense."""
    with pytest.raises(MarbleError, match="'!' makes no sense"):
        assert_marbles(ops.take(1), source="-a!", result="-a", hot=kind == "hot")


def test_only_a_hot_source_has_a_beginning() -> None:
    """A cold source begins when it is subscribed to, and a result at frame 0."""
    with pytest.raises(MarbleError, match=r"'\^' makes no sense"):
        Marbles().cold("^-a")
    test = Marbles()
    with pytest.raises(MarbleError, match=r"'\^' makes no sense"):
        test.expect(test.cold("-a"), "^-a")


def test_a_test_plays_once() -> None:
    """The clock does not turn back, so a second run is refused."""
    test = Marbles()
    source = test.cold("-a|")
    test.expect(source, "-a|")
    with pytest.raises(MarbleError, match="plays once"):
        test.expect(source, "-a|")


def test_an_endless_operator_does_not_hang_the_test() -> None:
    """What goes on for ever is watched for a while, and can be dropped."""
    ticks: Observable[int] = reactivex.interval(1.0)
    values = {str(number): number for number in range(10)}
    assert Marbles(values).expect(ticks, "-012!").items == [0, 1, 2]
    assert len(Marbles(values).record(ticks).items) == 100


def test_a_synchronous_source_arrives_in_frame_zero() -> None:
    """What is emitted while subscribing is in frame 0, more than a hundred items too."""
    many = Marbles().record(reactivex.of(*range(300)))
    assert {event.frame for event in many.events} == {0}
    assert len(many.items) == 300


def test_a_bug_below_a_pushed_source_is_not_hidden() -> None:
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


def test_subjects_can_be_mixed_in() -> None:
    """A stream need not come from a marble line at all."""
    subject: Subject[str] = Subject()
    test = Marbles()
    test.cold("-a").subscribe(subject)
    test.expect(subject, "-a")
