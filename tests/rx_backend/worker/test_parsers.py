"""Tool calls and reasoning that the frontend finds in an engine's text."""

from __future__ import annotations

import json
from collections.abc import Generator

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionFunctionToolParam

from tests.rx_backend.worker._processes import START_S, serve
from tests.rx_backend.worker.engines import MODEL

pytestmark = [pytest.mark.needs("dynamo"), pytest.mark.timeout(90)]

CALL = {"name": "weather_in", "arguments": {"city": "Paris", "days": 2}}
SAYS = (
    f"<think>\nParis, then.\n</think>\n\nLet me see.\n<tool_call>\n{json.dumps(CALL)}\n</tool_call>"
)
TOOL: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "weather_in",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        },
    },
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Generator[OpenAI]:
    """Serve an engine whose text has both, with a frontend, for all tests of this file."""
    parsers = ("--tool-call-parser", "hermes", "--reasoning-parser", "qwen3")
    says = ("--engine-arg", f"text={SAYS}")
    folder = tmp_path_factory.mktemp("parsers")
    with serve(folder, "TextEngine", *says, *parsers, "--frontend", "--grace-s", "0") as served:
        served.line("curl -N", START_S)
        with served.client() as client:
            yield client


def test_tool_calls_and_reasoning_are_separated_from_the_answer(client: OpenAI) -> None:
    """The client gets each in its own field; the finish reason is that of a call."""
    (choice,) = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "weather?"}], tools=[TOOL]
    ).choices
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == CALL["name"]
    assert json.loads(call.function.arguments) == CALL["arguments"]
    assert (choice.message.content or "").strip() == "Let me see."
    reasoning: str = getattr(choice.message, "reasoning_content", "")
    assert reasoning.strip() == "Paris, then."


def test_a_streamed_tool_call_is_complete(client: OpenAI) -> None:
    """Its parts add up to the same, and nothing of it is in the text."""
    stream = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "weather?"}], tools=[TOOL], stream=True
    )
    choices = [choice for chunk in stream for choice in chunk.choices]
    calls = [call.function for choice in choices for call in choice.delta.tool_calls or ()]
    assert [call.name for call in calls if call and call.name] == [CALL["name"]]
    arguments = "".join(call.arguments or "" for call in calls if call)
    assert json.loads(arguments) == CALL["arguments"]
    text = "".join(choice.delta.content or "" for choice in choices)
    assert text.strip() == "Let me see."
    assert [each.finish_reason for each in choices if each.finish_reason] == ["tool_calls"]
