"""How much memory an item takes."""

from __future__ import annotations

import sys
from typing import cast

from msgspec import Struct

__all__ = ("size_of",)


def size_of(value: object) -> int:
    """
    Return the size in bytes of *value* and its contents, as measured by ``sys.getsizeof``.

    Structs, lists, tuples, dicts and exceptions with their causes are traversed; duplicates count
    twice, and any other object counts without what it refers to.

    >>> size_of([1, 2]) == sys.getsizeof([1, 2]) + sys.getsizeof(1) + sys.getsizeof(2)
    True
    """
    total = 0
    waiting = [value]
    seen_errors: set[int] = set()
    while waiting:
        each = waiting.pop()
        if each is None or each is True or each is False:
            continue
        total += sys.getsizeof(each)
        if isinstance(each, Struct):
            waiting.extend(getattr(each, name) for name in each.__struct_fields__)
        elif isinstance(each, list | tuple):
            waiting.extend(cast("list[object]", each))
        elif isinstance(each, dict):
            entries = cast("dict[object, object]", each)
            waiting.extend(entries)
            waiting.extend(entries.values())
        elif isinstance(each, BaseException) and id(each) not in seen_errors:
            seen_errors.add(id(each))
            waiting += [each.args, each.__dict__, each.__cause__]
    return total
