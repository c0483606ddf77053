"""What a client of the service reads, event by event."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from tests.rx_backend.resumable.jetstream._answers import PROMPT

__all__ = (
    "CHAT",
    "COMPLETION",
    "TOKENS",
    "Event",
    "aevents",
    "events",
    "expected_text",
    "expected_tokens",
    "is_complete",
    "position_of",
    "text_of",
    "tokens_of",
)

TOKENS = 100
CHAT: Any = {"messages": [{"role": "user", "content": "count"}], "max_tokens": TOKENS}
COMPLETION: Any = {"prompt": "count", "max_tokens": TOKENS}


def expected_tokens(after: int = 0, tokens: int = TOKENS) -> list[int]:
    """Return the answer's tokens behind the first *after*."""
    return list(range(len(PROMPT) + after, len(PROMPT) + tokens))


def expected_text(after: int = 0, tokens: int = TOKENS) -> str:
    return "".join(f" {token}" for token in expected_tokens(after, tokens))


@dataclass(frozen=True)
class Event:
    """An event as it came."""

    id: str | None
    name: str | None
    data: str

    @property
    def json(self) -> Any:
        return json.loads(self.data)


class _Parser:
    def __init__(self) -> None:
        self._fields: dict[str, str] = {}

    def feed(self, line: str) -> Event | None:
        """Take a line; return the event that it ends."""
        if line:
            name, _, value = line.partition(": ")
            self._fields[name] = value
            return None
        fields, self._fields = self._fields, {}
        if "data" not in fields:
            return None
        return Event(fields.get("id"), fields.get("event"), fields["data"])


def events(response: httpx.Response) -> Iterator[Event]:
    """Yield the events of a response as they come."""
    parser = _Parser()
    for line in response.iter_lines():
        if event := parser.feed(line):
            yield event


async def aevents(response: httpx.Response) -> AsyncIterator[Event]:
    """Yield the events of a response as they come."""
    parser = _Parser()
    async for line in response.aiter_lines():
        if event := parser.feed(line):
            yield event


def position_of(event: Event) -> int:
    assert event.id is not None
    return int(event.id.rpartition(":")[2])


def text_of(found: list[Event]) -> str:
    """Return the text that events of any format have."""
    text = ""
    for event in found:
        if event.data == "[DONE]" or event.name is not None:
            continue
        data = event.json
        for choice in data.get("choices", ()):
            text += choice["delta"].get("content", "") if "delta" in choice else choice["text"]
        if data.get("data") is not None:
            text += data["data"]["text"] or ""
    return text


def tokens_of(found: list[Event]) -> list[int]:
    """Return the token ids that events of items have."""
    data = [event.json["data"] for event in found if event.name is None]
    return [token for each in data if each is not None for token in each["token_ids"]]


def is_complete(found: list[Event]) -> bool:
    """Return whether the last event says that nothing is missing."""
    return bool(found) and (found[-1].data == "[DONE]" or found[-1].name == "done")
