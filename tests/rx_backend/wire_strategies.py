"""Hypothesis strategies for what travels on the wire, read from the types themselves."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec.inspect as types
from hypothesis import strategies as st

from rx_backend.errors import KINDS, BackendError
from rx_backend.protocols import FinishReason, LLMEngineOutput, PreprocessedRequest

__all__ = (
    "errors",
    "finish_reasons",
    "ids",
    "letters",
    "outputs",
    "requests",
    "texts",
    "unknown_keys",
)

# Fractions that 32 bits hold: the runtime rounds the others.
fractions = st.floats(-8, 8, width=16)
# Any character would cost seconds, for the table of all that there are.
letters = st.sampled_from("aZ09 _-:./'\"\\\n\t\0\x7f\u00e9\u2028\u6f22\U0001f600")
texts = st.text(letters, max_size=5)
scalars = st.none() | st.booleans() | st.integers(-(2**31), 2**31) | fractions | texts
objects = st.dictionaries(texts, scalars | st.lists(scalars, max_size=2), max_size=2)
ids = st.lists(st.integers(0, 2**32 - 1), max_size=3)
unknown_keys = st.dictionaries(
    texts.map("x_{}".format) | st.just("unknown"), scalars | objects, min_size=1, max_size=2
)

finish_reasons = st.sampled_from(
    [
        FinishReason.EOS,
        FinishReason.STOP,
        FinishReason.LENGTH,
        FinishReason.CANCELLED,
        FinishReason.CONTENT_FILTER,
    ]
) | texts.map(FinishReason.error)

SCALARS: dict[type[types.Type], st.SearchStrategy[Any]] = {
    types.BoolType: st.booleans(),
    types.CustomType: finish_reasons,
    types.FloatType: fractions,
    types.NoneType: st.none(),
    types.StrType: texts,
}
# Fields that the runtime has types of its own for, and those that are left out.
TYPED: dict[str, st.SearchStrategy[Any]] = {
    "agent_context": st.just({"session_id": "s"}),
    "content_parts": st.just([{"type": "text", "text": "t"}]),
    "multi_modal_data": st.just({"image_url": [{"Url": "https://h/a.png"}, {"UuidOnly": "b"}]}),
    "multi_modal_uuids": st.just({"image_url": ["a", None]}),
    "routing": st.just({"dp_rank": 1, "priority": -1, "cache_salt": "s"}),
    "routing_data": st.just({"timing": {"request_received_ms": 5}}),
    "top_k": st.integers(-1, 2**31 - 1),
}
LEFT_OUT = {
    *("unknown", "mm_routing_info", "router_config_override", "kv_hint", "router"),
    *("structural_tag", "handoff_id"),
}


def instances(kind: type[Any], more: st.SearchStrategy[Any] | None) -> st.SearchStrategy[Any]:
    """Make instances of a struct with any of its fields set; *more* makes unknown keys."""
    needed: dict[str, st.SearchStrategy[Any]] = {}
    optional: dict[str, st.SearchStrategy[Any]] = {}
    info = types.type_info(kind)
    assert isinstance(info, types.StructType)
    for field in info.fields:
        if field.name in TYPED:
            optional[field.name] = TYPED[field.name]
        elif field.name not in LEFT_OUT:
            made = needed if field.required else optional
            made[field.name] = values(_set(field.type), more)
        elif field.name == "unknown" and more is not None:
            optional[field.name] = more

    def build(fields: dict[str, Any]) -> object:
        return kind(**fields)

    return st.fixed_dictionaries(needed, optional=optional).map(build)


def _set(kind: types.Type) -> types.Type:
    """Return the type of a field that is not null."""
    if not isinstance(kind, types.UnionType):
        return kind
    return types.UnionType(tuple(each for each in kind.types if type(each) is not types.NoneType))


def values(kind: types.Type, more: st.SearchStrategy[Any] | None) -> st.SearchStrategy[Any]:
    """Make values of a field's type."""
    match kind:
        case types.IntType():
            return st.integers(kind.ge or 0, 2**64 - 1 if kind.le is None else kind.le)
        case types.LiteralType():
            return st.sampled_from(kind.values)
        case types.ListType():
            return st.lists(values(kind.item_type, more), max_size=2)
        case types.StructType():
            return instances(kind.cls, more)
        case types.UnionType():
            return st.one_of([values(each, more) for each in kind.types])
        case _:
            return SCALARS.get(type(kind), objects)


def outputs(unknown: st.SearchStrategy[Any] | None = None) -> st.SearchStrategy[LLMEngineOutput]:
    """Make chunks with any of their fields set, and unknown keys."""
    return instances(LLMEngineOutput, unknown)


def requests(more: st.SearchStrategy[Any] | None = None) -> st.SearchStrategy[PreprocessedRequest]:
    """
    Make requests with any of their fields set.

    Args:
        more: Unknown keys for the request and for each of its parts.
    """
    return instances(PreprocessedRequest, more)


def _caused(chain: list[BackendError]) -> BackendError:
    for error, cause in pairwise(chain):
        error.__cause__ = cause
    return chain[0]


def _error(kind: str, message: str) -> BackendError:
    return KINDS[kind](message)


errors = st.lists(
    st.builds(_error, st.sampled_from(sorted(KINDS)), texts), min_size=1, max_size=4
).map(_caused)
