"""Engines made from a command line."""

from __future__ import annotations

from typing import Any, Self

import pytest

from rx_backend import InvalidArgument
from rx_backend.engines import SampleEngine
from rx_backend.testing.engine_making import engine_maker, read_arguments

HERE = "tests.rx_backend.testing.test_engine_making"


class Configured(SampleEngine):
    def __init__(self, size: Any, *, mode: str = "?", model_path: Any = None, **more: Any) -> None:
        super().__init__()
        self.seen = {"size": size, "mode": mode, "model_path": model_path, **more}


class Strict(SampleEngine):
    def __init__(self, size: int, depth: int = 1) -> None:
        super().__init__()
        self.seen = (size, depth)


class Modelled(SampleEngine):
    def __init__(self, model_path: str) -> None:
        super().__init__(model=model_path)


class Parsed(SampleEngine):
    def __init__(self, argv: list[str]) -> None:
        super().__init__()
        self.seen = argv

    @classmethod
    async def from_args(cls, argv: list[str]) -> tuple[Self, str]:
        return cls(argv), "the worker's config"


async def later(size: int) -> Strict:
    return Strict(size)


def fails(size: int) -> Strict:
    raise OSError(f"no room for {size}")


def seen(engine: Any) -> Any:
    return engine.seen


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4096", 4096),
        ("true", True),
        ("null", None),
        ("[1]", [1]),
        ('{"a":1}', {"a": 1}),
        ('"4096"', "4096"),
        ("bfloat16", "bfloat16"),
        ("007", "007"),
        ("NaN", "NaN"),
        ("", ""),
        ("a=b", "a=b"),
        ("/models/\udcff", "/models/\udcff"),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_a_value_is_json_or_text(text: str, value: object) -> None:
    """What JSON has no meaning for is text, whole."""
    read = read_arguments([f"size={text}"])
    assert read == {"size": value}
    assert type(read["size"]) is type(value)


def test_arguments_reach_the_engine() -> None:
    """Those given by name, those offered where there is a parameter, and no others."""
    offered: dict[str, Any] = {"mode": "decode", "model_path": None}
    engine = engine_maker(f"{HERE}:Configured", ["size=3", "other=x"], **offered).make()
    assert seen(engine) == {"size": 3, "mode": "decode", "model_path": None, "other": "x"}
    assert seen(engine_maker(f"{HERE}:Strict", ["size=3"], **offered).make()) == (3, 1)
    assert seen(engine_maker(f"{HERE}:later", ["size=4"]).make()) == (4, 1)


def test_arguments_after_the_separator_go_to_the_engines_parser() -> None:
    """It may be async, and give a pair, as Dynamo's engines do."""
    assert seen(engine_maker(f"{HERE}:Parsed", [], ["--size", "3"]).make()) == ["--size", "3"]


@pytest.mark.parametrize(
    ("name", "arguments", "own", "message"),
    [
        ("Strict", ["size"], [], "--engine-arg: expected name=value, got 'size'"),
        ("Strict", ["=3"], [], "--engine-arg: expected name=value"),
        (
            "Strict",
            ["the-size=3"],
            [],
            "expected an argument's name with underscores, got 'the-size'",
        ),
        ("Strict", ["size=1", "size=2"], [], "--engine-arg size: given twice"),
        ("Strict", ["size=1", "wide=2"], [], "no argument wide; it takes size (required), depth"),
        ("Strict", ["depth=1"], [], "needs the argument size; it takes size (required), depth"),
        ("Modelled", [], [], "needs the argument model_path (--model-path)"),
        ("Configured", ["size=1", "mode=agg"], [], "--engine-arg mode: already given by --mode"),
        (
            "Strict",
            [],
            ["--size", "3"],
            "expected a method from_args for arguments after --: --size 3",
        ),
        ("Parsed", ["argv=1"], ["--size"], "--engine-arg: no effect with"),
        ("fails", ["size=9"], [], "making it raised OSError: no room for 9"),
    ],
)
def test_invalid_input_is_named(
    name: str, arguments: list[str], own: list[str], message: str
) -> None:
    """The error says which argument, and what there is."""
    with pytest.raises(InvalidArgument) as caught:
        engine_maker(f"{HERE}:{name}", arguments, own, mode="agg").make()
    assert message in caught.value.message
