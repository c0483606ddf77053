"""Clients of the services under test."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack

import openai
import pytest


@pytest.fixture
def official() -> Generator[Callable[[str], openai.OpenAI]]:
    """Make official clients of servers, by URL."""
    with ExitStack() as stack:

        def make(url: str) -> openai.OpenAI:
            client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
            return stack.enter_context(client)

        yield make
