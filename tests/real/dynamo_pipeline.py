"""A pipeline that tells at the end of each request how many tokens it had."""

from __future__ import annotations

import sys
from typing import Any

from operators.authoring import Stage, operator
from rx_backend.pipeline import standard_pipeline

__all__ = ("telling",)


@operator
def print_tokens() -> Stage[Any, Any]:
    """Write a line with the number of tokens, however the stream ends."""
    tokens = 0
    try:
        item = yield
        while True:
            tokens += len(item.data.token_ids) if item.data else 0
            item = yield item
    finally:
        sys.stdout.write(f"tokens {tokens}\n")
        sys.stdout.flush()


telling = standard_pipeline.with_operators(print_tokens())
