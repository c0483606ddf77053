"""`rx_backend.disagg`."""

from __future__ import annotations

import pytest

from rx_backend.disagg import DisaggregationMode
from rx_backend.errors import InvalidArgument


@pytest.mark.rows("P2", "TY-mode")
@pytest.mark.parametrize("mode", DisaggregationMode)
def test_a_mode_is_its_span_value(mode: DisaggregationMode) -> None:
    """A mode is the text that the span carries, and is read back from it."""
    assert str(mode) == mode.value
    assert DisaggregationMode.parse(mode.value) is mode
    assert DisaggregationMode.parse(mode) is mode


@pytest.mark.rows("TY-mode")
def test_the_span_values_are_the_agreed_ones() -> None:
    """The three modes have the values of the reference."""
    assert list(DisaggregationMode) == ["agg", "prefill", "decode"]


def test_a_mode_says_which_side_it_is() -> None:
    """Each property is true for its own mode alone."""
    assert [mode.is_prefill for mode in DisaggregationMode] == [False, True, False]
    assert [mode.is_decode for mode in DisaggregationMode] == [False, False, True]


@pytest.mark.rows("TY-mode")
@pytest.mark.parametrize("value", ["", "Decode", "aggregated", "encode", None, 3, ["agg"]])
def test_anything_else_is_refused_with_the_valid_values(value: object) -> None:
    """A wrong mode is an InvalidArgument that names the parameter, the choices and the value."""
    with pytest.raises(InvalidArgument) as caught:
        DisaggregationMode.parse(value)  # pyright: ignore[reportArgumentType]
    assert caught.value.message == f"mode: expected one of agg, prefill, decode, got {value!r}"
