"""`operators.validate_chunks`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from operators import validate_chunks
from rx_backend.testing import assert_marbles
from tests.operators._help import LETTERS, Chunk, Life, Seen, token


class Malformed(Exception):
    """What a malformed chunk fails the stream with, in these tests."""


def convert(item: Any) -> Chunk:
    if not isinstance(item, dict):
        raise TypeError(f"no chunk: {item!r}")
    return Chunk(**cast("dict[str, Any]", item))


def mapping(token_ids: list[Any]) -> dict[str, Any]:
    return {"token_ids": token_ids}


validated = validate_chunks(Chunk, convert, error=Malformed)

VALUES: dict[str, Any] = {
    **LETTERS,
    "m": {"token_ids": [4]},
    "C": token(4),
    "n": token(-1),
    "x": object(),
}


@pytest.mark.rows("E2")
@pytest.mark.parametrize(
    ("source", "result", "subscription"),
    [
        pytest.param("--|", "--|", "^-!", id="empty"),
        pytest.param("--a|", "--a|", "^--!", id="one"),
        pytest.param("-h-a-m-U-T|", "-h-a-C-U-T|", "^---------!", id="many"),
        pytest.param("-a-n-b-|", "-a-#", "^--!", id="malformed"),
        pytest.param("-m-x-b-|", "-C-#", "^--!", id="no-chunk"),
        pytest.param("-a-#", "-a-#", "^--!", id="source-error"),
    ],
)
def test_well_formed_chunks_pass_and_the_rest_fails(
    source: str, result: str, subscription: str
) -> None:
    """Chunks pass, mappings are converted, and the first thing that is neither ends the stream."""
    assert_marbles(
        validated, source=source, result=result, values=VALUES, subscriptions=[subscription]
    )


@pytest.mark.rows("S1")
@pytest.mark.parametrize(
    "token_ids",
    [[0], [(1 << 30) - 1], [1 << 30], [(1 << 32) - 1], [], [1, 2, 3], [0, (1 << 32) - 1]],
    ids=str,
)
def test_a_well_formed_chunk_passes_unchanged(life: Life, token_ids: list[int]) -> None:
    """Any number of ids from 0 to 32 bits is well-formed, and the chunk is the same object."""
    chunks = [Chunk(token_ids), Chunk(token_ids, "stop")]
    seen = life(chunks, validated)
    assert seen.end == "completed"
    assert list(map(id, seen.items)) == list(map(id, chunks))


@pytest.mark.rows("E2")
@pytest.mark.parametrize("wrong", [-1, 1 << 32, 1.0, "1", None, True, [1]], ids=repr)
@pytest.mark.parametrize("before", [[], [7], [7, 8]], ids=len)
@pytest.mark.parametrize("make", [Chunk, mapping])
def test_a_wrong_token_id_fails_the_stream(
    life: Life, make: Callable[[list[Any]], Any], before: list[int], wrong: Any
) -> None:
    """The error names the place in ``token_ids``, what was expected and what was there."""
    seen = life([token(1), make([*before, wrong])], validated)
    assert seen.items == [token(1)]
    assert isinstance(seen.error, Malformed)
    assert str(seen.error) == (
        f"token_ids[{len(before)}]: expected an int from 0 to 4294967295, got {wrong!r}"
    )


@pytest.mark.rows("E2")
@pytest.mark.parametrize(
    ("item", "end"),
    [
        (Chunk(None), "Malformed('token_ids: expected a list of ints, got None')"),  # type: ignore[arg-type]
        (Chunk(7), "Malformed('token_ids: expected a list of ints, got 7')"),  # type: ignore[arg-type]
        (5, "TypeError('no chunk: 5')"),
    ],
)
def test_a_non_chunk_fails_the_stream(life: Life, item: Any, end: str) -> None:
    """The error names the field, or is what the conversion raises."""
    assert life([token(1), item], validated) == Seen([token(1)], end)


def test_only_the_exact_class_is_a_chunk(life: Life) -> None:
    """An object of a subclass is converted like anything else."""

    class Special(Chunk):
        pass

    seen = life([Special([1])], validate_chunks(Chunk, lambda item: Chunk(item.token_ids * 2)))
    assert seen == Seen([token(1, 1)], "completed")


def test_the_error_is_a_value_error_by_default(life: Life) -> None:
    """Without ``error`` a malformed chunk is a ``ValueError``."""
    seen = life([Chunk([-1])], validate_chunks(Chunk, convert))
    assert type(seen.error) is ValueError
