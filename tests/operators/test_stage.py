"""`operators._core.stage`: what an operator can say, the same in every way to run it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import pytest
import reactivex
from hypothesis import example, given
from hypothesis import strategies as st
from reactivex import Observable

from operators import fuse
from operators.assembly import Callbacks, callbacks
from operators.authoring import (
    AnyOperator,
    Completed,
    Operator,
    Stage,
    StageResult,
    complete_with,
    detach,
    emit,
    fail_after,
    operator,
)
from rx_backend.testing import run_virtual
from tests.operators._help import Bare, Engine, Life, Seen, collect, same, spy, twice

Ints = Stage[int, int]

SECRET = "what a user wrote"

shared = callbacks(shared=True)


async def nothing_async() -> None:
    """Do nothing."""


# Every way in which a stream can end, as arguments of a life.
ENDS = [
    pytest.param({}, "|", id="completed"),
    pytest.param({"error": LookupError("gone")}, "#", id="failed"),
    pytest.param({"take": 2}, "!", id="dropped"),
    pytest.param({"ends": False}, "!", id="dropped-while-waiting"),
]


class TestItems:
    """What an operator hands out for an item."""

    @pytest.mark.rows("O5")
    @pytest.mark.parametrize("form", ["generator", "callbacks", "callbacks under a condition"])
    def test_returning_none_for_an_item_fails_the_stream(self, life: Life, form: str) -> None:
        """A step that gives None fails the stream; the error names the operator, and it is closed."""
        journal: list[str] = []

        @operator
        def forgetful() -> Ints:
            try:
                item = yield
                while True:
                    item = yield item if item < 2 else None
            finally:
                journal.append("end")

        @callbacks(shared=True)
        def absent_minded() -> Callbacks[Any, Any]:
            return Callbacks(
                lambda item: item if item < 2 else None,
                only=None if form == "callbacks" else "item > 1",
                on_end=lambda _failure, _dropped: journal.append("end"),
            )

        stage = absent_minded() if form.startswith("callbacks") else forgetful()
        seen = life([1, 2, 3], same(), stage, same())
        assert seen.items == [1]
        assert isinstance(seen.error, TypeError)
        assert "expected an item to hand out, got None" in str(seen.error)
        assert seen.error.__notes__ == [f"raised by the operator {stage.name}"]
        assert journal == ["end"]

    @pytest.mark.rows("O5")
    @pytest.mark.parametrize("wrong", ["boom", ValueError, Completed(), None])
    def test_fail_after_needs_an_exception(self, life: Life, wrong: Any) -> None:
        """The error names the operator and what was expected; nothing else reaches the client."""

        @operator
        def failing() -> Ints:
            item = yield
            yield fail_after(wrong, item)

        seen = life([1, 2], failing())
        assert seen.items == []
        assert "fail_after: error: expected an Exception, got" in str(seen.error)
        assert seen.error is not None
        assert seen.error.__notes__ == ["raised by the operator failing"]


class TestEnd:
    """How the end reaches an operator, and what it can do then."""

    @pytest.mark.rows("S7")
    @pytest.mark.parametrize(("how", "end"), ENDS)
    def test_the_end_arrives_at_the_yield(self, life: Life, how: dict[str, Any], end: str) -> None:
        """Completed, the exception, or GeneratorExit; every operator is notified, once."""
        journal: list[str] = []
        life([1, 2], spy(journal, "a"), spy(journal, "b"), **how)
        assert journal[:4] == ["a1", "b1", "a2", "b2"]
        assert sorted(journal[4:]) == [f"a{end}", f"b{end}"]

    def test_completed_is_not_an_exception_subclass(self, life: Life) -> None:
        """``except Exception`` in an operator does not catch it."""

        @operator
        def careful() -> Ints:
            item = yield
            while True:
                try:
                    item = yield item
                except Exception:
                    return 99

        assert life([1, 2], careful()) == Seen([1, 2], "completed")
        assert life([1, 2], careful(), error=LookupError()) == Seen([1, 2, 99], "completed")

    @pytest.mark.parametrize(
        ("words", "items"),
        [
            pytest.param(7, [7], id="one"),
            pytest.param(emit(7, 8), [7, 8], id="several"),
            pytest.param(emit(), [], id="none"),
            pytest.param(None, [], id="nothing"),
            pytest.param(detach(7), [7], id="detach"),
        ],
    )
    @pytest.mark.parametrize("error", [None, LookupError("gone")], ids=["completed", "failed"])
    @pytest.mark.parametrize("returned", [True, False], ids=["returned", "yielded"])
    def test_items_at_the_end_are_handed_out(
        self, life: Life, returned: bool, error: Exception | None, words: Any, items: list[int]
    ) -> None:
        """What is handed out at the end still comes out, through the later operators."""

        @operator
        def speak() -> Stage[Any, Any]:
            item = yield
            try:
                while True:
                    item = yield item
            except (Completed, LookupError):
                if returned:
                    return words
                yield words

        journal: list[str] = []
        seen = life([1], speak(), spy(journal), error=error)
        assert seen == Seen([1, *items], "completed")
        assert journal == ["1", *(str(item) for item in items), "|"]

    @pytest.mark.parametrize("at", ["item", "end", "failure"])
    @pytest.mark.parametrize("held", [(), (7,), (7, 8, 9)])
    @pytest.mark.parametrize("says", ["yield", "return"])
    def test_held_items_come_out_before_a_failure(
        self, life: Life, at: str, held: tuple[int, ...], says: str
    ) -> None:
        """All of it, the last item too, whether the operator or its source fails."""

        @operator
        def holding() -> Ints:
            try:
                yield
                if at != "item":
                    yield emit()
            except (Completed, LookupError):
                pass
            if says == "return":
                return fail_after(KeyError("after"), *held)
            yield fail_after(KeyError("after"), *held)

        error = LookupError("gone") if at == "failure" else None
        seen = life([1], holding(), twice(), error=error)
        expected = [item for item in held for _ in range(2)]
        assert seen == Seen(expected, "KeyError('after')")

    @pytest.mark.parametrize(
        ("words", "items"),
        [
            pytest.param(9, [9], id="one"),
            pytest.param(emit(9, 8), [9, 8], id="several"),
            pytest.param(emit(), [], id="none"),
            pytest.param(None, [], id="nothing"),
        ],
    )
    def test_returning_ends_the_stream(self, life: Life, words: Any, items: list[int]) -> None:
        """It is a drop for earlier operators, and an ordinary end for later ones."""

        @operator
        def first() -> Stage[Any, Any]:
            yield
            return words

        journal: list[str] = []
        seen = life([1, 2, 3], spy(journal, "a"), first(), spy(journal, "b"))
        assert seen == Seen(items, "completed")
        assert [entry for entry in journal if entry[0] == "a"] == ["a1", "a!"]
        assert [entry for entry in journal if entry[0] == "b"] == [
            *(f"b{item}" for item in items),
            "b|",
        ]

    async def test_returning_before_the_first_item_closes_the_source(self) -> None:
        """The source is closed without having been pulled, and earlier operators are dropped."""

        @operator
        def stop_at_once() -> Stage[Any, Any]:
            return 9
            yield

        source = Bare()
        journal: list[str] = []
        stream = fuse(source, [spy(journal), stop_at_once(), stop_at_once()])
        assert await collect(stream) == Seen([9], "completed")
        assert (source.journal, journal) == (["closed"], ["!"])

    def test_a_failure_is_a_drop_for_earlier_operators(self, life: Life) -> None:
        """Earlier ones are closed first; later ones see the exception, and one may swallow it."""

        @operator
        def refuse() -> Ints:
            yield
            raise LookupError

        @operator
        def swallow() -> Ints:
            try:
                yield
            except LookupError:
                return 99

        journal: list[str] = []
        stages = [spy(journal, "a"), refuse(), spy(journal, "b"), swallow(), spy(journal, "c")]
        assert life([1, 2], *stages) == Seen([99], "completed")
        assert journal == ["a1", "a!", "b#", "c99", "c|"]

    @pytest.mark.rows("O4", "S7")
    @pytest.mark.parametrize("form", ["generator", "callbacks"])
    def test_a_failing_release_does_not_prevent_others(
        self, life: Life, form: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What it raises in a drop is logged with the operator's name, and without its message."""

        def refuse(*_: object) -> Any:
            raise LookupError(SECRET)

        @operator
        def clumsy() -> Ints:
            try:
                item = yield
                while True:
                    item = yield item
            finally:
                refuse()

        @callbacks(shared=True)
        def clumsier() -> Callbacks[int, int]:
            return Callbacks(on_end=refuse)

        journal: list[str] = []
        broken = clumsy() if form == "generator" else clumsier()
        stages = [spy(journal, "a"), broken, spy(journal, "b")]
        assert life([1, 2, 3], *stages, take=1) == Seen([1], "dropped")
        assert sorted(journal) == ["a!", "a1", "b!", "b1"]
        assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
            (logging.ERROR, f"operator {broken.name} failed while being closed")
        ]
        assert "LookupError" in caplog.text
        assert SECRET not in caplog.text
        caplog.clear()


class TestStepAside:
    """``detach`` and ``when``."""

    @pytest.mark.parametrize("items_out", [(), (7,), (7, 8)], ids=str)
    @pytest.mark.parametrize(("how", "end"), ENDS)
    def test_detach(
        self, life: Life, how: dict[str, Any], end: str, items_out: tuple[int, ...]
    ) -> None:
        """Later items don't visit; the end does."""
        journal: list[str] = []

        @operator
        def aside() -> Ints:
            signal = "!"
            item = yield
            journal.append(f"saw {item}")
            try:
                yield detach(*items_out)
            except Completed:
                signal = "|"
                raise
            except LookupError:
                signal = "#"
                raise
            finally:
                journal.append(signal)

        seen = life([1, 2, 3], same(), aside(), same(), **how)
        whole = [*items_out, 2, 3]
        assert seen.items == whole[: how.get("take")]
        assert journal == ["saw 1", end]

    def test_detach_from_the_start(self, life: Life) -> None:
        """Before the first item, yielded or returned, no item visits at all."""
        journal: list[str] = []

        @operator
        def only_the_end() -> Ints:
            try:
                yield detach()
            finally:
                journal.append("end")

        @operator
        def nothing() -> Ints:
            return detach()
            yield

        assert life([1, 2], nothing(), only_the_end(), nothing()) == Seen([1, 2], "completed")
        assert journal == ["end"]

    def test_only_items_that_match_when_visit(self, life: Life) -> None:
        """Only items for which the expression is true visit; the others pass."""

        @callbacks()
        def big_tenfold(least: int) -> Callbacks[int, int]:
            return Callbacks(lambda item: item * 10, only="item >= least", names={"least": least})

        assert life([1, 5, 3, 6], big_tenfold(5)) == Seen([1, 50, 3, 60], "completed")
        two = big_tenfold(3), big_tenfold(50)
        assert life([1, 5, 3, 6], *two) == Seen([1, 500, 30, 600], "completed")

    def test_detaching_ends_a_condition(self, life: Life) -> None:
        """After ``detach`` the condition is void: no item visits."""

        @callbacks()
        def negative_at_two() -> Callbacks[int, int]:
            return Callbacks(lambda item: detach(-item), only="item >= 2")

        stages = negative_at_two(), negative_at_two(), same()
        assert life([1, 2, 3, 3], *stages) == Seen([1, -2, -3, 3], "completed")

    def test_a_condition_is_evaluated_once_for_each_item(self, life: Life) -> None:
        """So it may do what an ordinary item needs."""
        noted: list[int] = []

        @callbacks()
        def note() -> Callbacks[int, int]:
            names = {"note": noted.append}
            return Callbacks(lambda item: -item, only="note(item) or item == 3", names=names)

        assert life([1, 2, 3, 4], twice(), note()).items == [1, 1, 2, 2, -3, -3, 4, 4]
        assert noted == [1, 1, 2, 2, 3, 3, 4, 4]

    @pytest.mark.parametrize(
        "condition", ["any(n == item for n in allowed)", "item in [*map(int, allowed)]"]
    )
    def test_a_condition_may_be_any_expression(self, life: Life, condition: str) -> None:
        """Its names are its own, inside a comprehension too, and builtins are there."""

        @callbacks()
        def chosen(allowed: list[int]) -> Callbacks[int, int]:
            return Callbacks(lambda item: -item, only=condition, names={"allowed": allowed})

        assert life([1, 2, 3], chosen([1]), chosen([3])) == Seen([-1, 2, -3], "completed")

    @pytest.mark.parametrize("name", ["step", "step_0", "chain", "source", "pull", "release"])
    def test_names_in_a_condition_do_not_clash_with_the_loop(self, life: Life, name: str) -> None:
        """The names of the loop that it becomes a part of are not in the way."""

        @callbacks()
        def chosen() -> Callbacks[int, int]:
            return Callbacks(lambda item: -item, only=f"item == {name}", names={name: 2})

        assert life([1, 2], chosen(), chosen()) == Seen([1, -2], "completed")

    def test_a_condition_that_raises_fails_the_stream(self, life: Life) -> None:
        """Earlier operators are dropped, its own operator is closed, later ones see the error."""
        journal: list[str] = []

        @callbacks()
        def wrong() -> Callbacks[int, int]:
            def end(_failure: Exception | None, _dropped: bool) -> None:
                journal.append("end")

            return Callbacks(lambda item: item, only="6 / item < 0", on_end=end)

        seen = life([3, 0], same(), wrong(), spy(journal))
        assert seen == Seen([3], "ZeroDivisionError('division by zero')")
        assert journal == ["3", "end", "#"]


class TestCallbacks:
    """Operators whose body is functions."""

    @pytest.mark.parametrize("how", [callbacks(shared=True), callbacks()])
    def test_once_lets_only_the_first_item_visit(
        self,
        life: Life,
        how: Callable[[Callable[[], Callbacks[int, int]]], Callable[[], AnyOperator]],
    ) -> None:
        """With ``once`` only the first item visits, in every stream."""

        def negative() -> Callbacks[int, int]:
            return Callbacks(lambda item: -item, only="item > 1", once=True)

        once = how(negative)()
        for _ in range(2):
            assert life([1, 2, 3], once) == Seen([1, -2, 3], "completed")
        assert life([1, 2, 3], twice(), once) == Seen([1, 1, -2, 2, 3, 3], "completed")

    @pytest.mark.parametrize(
        ("answer", "items"),
        [
            pytest.param(emit(), [1, 3], id="none"),
            pytest.param(emit(8, 9), [1, 8, 9, 3], id="several"),
            pytest.param(complete_with(), [1], id="complete-none"),
            pytest.param(complete_with(9), [1, 9], id="complete-one"),
            pytest.param(complete_with(8, 9), [1, 8, 9], id="complete-several"),
            pytest.param(detach(9), [1, 9, 3], id="detach"),
        ],
    )
    def test_a_step_may_return_emit_or_complete_with(
        self, life: Life, answer: Any, items: list[int]
    ) -> None:
        """``emit`` hands out any number; ``complete_with`` ends the stream with what it has."""
        journal: list[str] = []
        answering = shared(lambda: Callbacks[int, int](lambda _: answer, only="item == 2"))
        seen = life([1, 2, 3], spy(journal, "a"), answering(), spy(journal, "b"))
        assert seen == Seen(items, "completed")
        ended = 3 not in items
        assert journal[-2:] == [f"b{items[-1]}" if not ended else journal[-2], "b|"] or not ended
        assert ("a!" if ended else "a|") in journal

    @pytest.mark.parametrize(
        ("how", "told"),
        [
            pytest.param({}, (None, False), id="completed"),
            pytest.param({"error": LookupError("gone")}, ("gone", False), id="failed"),
            pytest.param({"take": 2}, (None, True), id="dropped"),
            pytest.param({"ends": False}, (None, True), id="dropped-while-waiting"),
        ],
    )
    def test_the_end_is_reported_once(
        self, life: Life, how: dict[str, Any], told: tuple[str | None, bool]
    ) -> None:
        """With the failure or None, and whether the stream was dropped."""
        ends: list[tuple[str | None, bool]] = []

        @callbacks(shared=True)
        def tell() -> Callbacks[int, int]:
            return Callbacks(
                on_end=lambda failure, dropped: ends.append(
                    (None if failure is None else str(failure), dropped)
                )
            )

        life([1, 2, 3], tell(), same(), **how)
        assert ends == [told]

    def test_the_end_is_reported_once_when_the_step_fails(self, life: Life) -> None:
        """A stage that fails, or ends the stream by ``complete_with``, is notified once too."""
        ends: list[str] = []

        @callbacks(shared=True)
        def broken(step: Callable[[int], Any]) -> Callbacks[int, int]:
            return Callbacks(
                step, only="True", on_end=lambda _failure, _dropped: ends.append("end")
            )

        assert life([0, 1], broken(lambda item: 1 // item)).error is not None
        assert ends == ["end"]
        assert life([0, 1], broken(complete_with)) == Seen([0], "completed")
        assert ends == ["end", "end"]

    def test_callbacks_that_raise_fail_the_stream(self, life: Life) -> None:
        """What ``on_error`` or ``on_end`` raises takes the place of the end."""

        def refuse(*_: object) -> Any:
            raise ValueError("refused")

        on_error = shared(lambda: Callbacks[Any, Any](on_error=refuse))
        on_end = shared(lambda: Callbacks[Any, Any](on_end=refuse))
        refused = Seen([1], "ValueError('refused')")
        assert life([1], on_error(), error=LookupError()) == refused
        assert life([1], on_end(), error=LookupError()) == refused
        assert life([1], on_end()) == refused

    def test_a_shared_function_runs_once(self, life: Life) -> None:
        """With ``shared`` the callbacks are asked for when the operator is made, and never again."""
        made: list[str] = []

        @callbacks(shared=True)
        def negative() -> Callbacks[int, int]:
            made.append("made")
            return Callbacks(lambda item: -item)

        value = negative()
        for _ in range(2):
            assert life([1], value, value) == Seen([1], "completed")
        assert made == ["made"]


class TestSetUp:
    """What happens when an operator can't start."""

    @pytest.mark.rows("O5")
    @pytest.mark.parametrize("body", [7, iter([1]), emit()], ids=["number", "iterator", "result"])
    def test_a_function_must_return_a_body(self, life: Life, body: Any) -> None:
        """A function that gives neither a generator nor callbacks is named in the error."""

        def not_a_body() -> Any:
            return body

        seen = life([1], callbacks()(not_a_body)())
        assert isinstance(seen.error, TypeError)
        assert "not_a_body: expected the operator's function to return a generator" in str(
            seen.error
        )

    def test_an_operator_may_have_no_stage(self, life: Life) -> None:
        """An operator that has nothing to do makes no stage."""

        @callbacks()
        def nothing() -> Callbacks[int, int] | None:
            return None

        assert life([1, 2], nothing(), same(), nothing()) == Seen([1, 2], "completed")
        assert life([1], nothing(), error=LookupError()) == Seen([1], "LookupError()")

    @pytest.mark.rows("O5")
    @pytest.mark.parametrize("function", [lambda: None, nothing_async, print, 7], ids=repr)
    def test_an_invalid_body_is_rejected(self, function: Any) -> None:
        """It is refused when it is decorated; the error says what was expected, and shows it."""
        with pytest.raises(TypeError) as refused:
            operator(function)
        message = str(refused.value)
        assert message.startswith("operator: expected a generator or an asynchronous generator")
        assert message.endswith(repr(function))
        assert ("or map_async" in message) is (function is nothing_async)


TERMS = (
    "item.size != 1",
    "item.is_last",
    "not item.is_last",
    "len(item.name) > 1",
    "ask(item.size)",
    "(size := item.size) > 2",
)


@dataclass(frozen=True)
class Item:
    size: int
    is_last: bool
    name: str


@dataclass(frozen=True)
class Visits:
    """Who visits a stage, and what it does to the item."""

    terms: tuple[str, ...]
    change: str = "keep"
    once: bool = False


@callbacks()
def noting(visits: Visits, place: int, journal: list[str]) -> Callbacks[Item, Item]:
    """Note which items visit, and which are asked about by a function."""

    def step(item: Item) -> Item | StageResult:
        journal.append(f"{place} {item}")
        if visits.change == "turn":
            return replace(item, is_last=not item.is_last, size=item.size % 3 + 1)
        if visits.change == "lose":
            return emit()
        return emit(item, replace(item, size=1)) if visits.change == "double" else item

    def ask(size: int) -> bool:
        journal.append(f"{place} asks {size}")
        return size == 2

    return Callbacks(step, only=" or ".join(visits.terms), names={"ask": ask}, once=visits.once)


VISITS = st.lists(
    st.builds(
        Visits,
        st.lists(st.sampled_from(TERMS), min_size=1, max_size=4, unique=True).map(tuple),
        st.sampled_from(["keep", "turn", "lose", "double"]),
        st.booleans(),
    ),
    min_size=1,
    max_size=5,
)
SIZED = st.lists(
    st.builds(Item, st.integers(1, 3), st.booleans(), st.sampled_from(["a", "ab"])), max_size=6
)


@given(VISITS, SIZED)
@example(
    [Visits(("item.size != 1",)), Visits(("item.is_last",), "turn"), Visits(("item.size != 1",))],
    [Item(1, True, "a"), Item(1, False, "a")],
)
def test_conditions_are_independent_of_neighbours(row: list[Visits], given: list[Item]) -> None:
    """Any row of conditions: the same items visit, and come out, as where each stage is alone."""

    def stages(journal: list[str]) -> list[Operator[Item, Item]]:
        return [noting(one, place, journal) for place, one in enumerate(row)]

    async def run() -> tuple[list[Item], list[str]]:
        journal: list[str] = []
        seen = await collect(fuse(Engine(given)(), stages(journal)))
        return seen.items, journal

    out: list[Item] = []
    alone: list[str] = []
    source: Observable[Item] = reactivex.from_iterable(given)
    reduce(Observable[Item].pipe, stages(alone), source).subscribe(out.append)
    assert run_virtual(run()) == (out, alone)
