"""Who is asking: what of a client's request reaches the engine, as docs/engines.md says."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest

from tests.rx_backend.worker._processes import START_S, serve, until

pytestmark = [pytest.mark.needs("dynamo"), pytest.mark.timeout(90)]

ENGINE = """
import json
from rx_backend import EngineConfig, LLMEngine, LLMEngineOutput
from rx_backend.protocols import to_builtins

class Engine(LLMEngine):
    async def start(self, worker_id):
        return EngineConfig(model="who")

    async def generate(self, request, context):
        seen = {
            "id": context.id,
            "metadata": dict(context.metadata),
            "headers": dict(context.trace_headers),
            "request": to_builtins(request),
        }
        print("asked", json.dumps(seen), flush=True)
        yield LLMEngineOutput.token(65)
        yield LLMEngineOutput.stop()
"""

Asked = dict[str, Any]
Ask = Callable[..., Asked]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Generator[Ask]:
    """Serve an engine that prints what it is given; ask it with headers and fields of the body."""
    folder = tmp_path_factory.mktemp("tenants")
    (folder / "asked_engine.py").write_text(ENGINE)
    flags = ("asked_engine:Engine", "--frontend", "--grace-s", "0")
    with serve(folder, *flags, cwd=folder, DYN_LOGGING_JSONL="true") as served:
        served.line("curl -N", START_S)
        with served.client() as client:

            def asked(headers: dict[str, str] | None = None, **body: object) -> Asked:
                before = len(served.told("asked"))
                client.chat.completions.create(
                    model="who",
                    messages=[{"role": "user", "content": "hi"}],
                    max_tokens=3,
                    extra_headers=headers,
                    extra_body=body,
                )
                return until(lambda: served.told("asked")[before:])[0]

            yield asked


def test_the_tenants_header_is_the_cache_salt(ask: Ask) -> None:
    """The header counts before the body's salt, which counts without it."""
    body: dict[str, object] = {"nvext": {"cache_salt": "own"}}
    for headers, salt in (({"x-tenant-id": "acme"}, "acme"), ({}, "own")):
        request = ask(headers, **body)["request"]
        assert request["routing"]["cache_salt"] == salt
        assert request["extra_args"]["nvext"]["cache_salt"] == salt
    assert "cache_salt" not in ask()["request"]["routing"]


def test_annotations_and_sessions_arrive(ask: Ask) -> None:
    """As they were given."""
    asked = ask({"x-dynamo-session-id": "s1"}, nvext={"annotations": ["tenant:acme"]})
    assert asked["request"]["annotations"] == ["tenant:acme"]
    assert asked["request"]["agent_context"]["session_id"] == "s1"


def test_request_ids(ask: Ask) -> None:
    """One header is the request's id, the other is among the trace headers."""
    own = "0b9f7f5a-63a5-4a2f-8c6c-0d9f1f6f1a11"
    assert ask({"x-dynamo-request-id": own})["id"] == own
    asked = ask({"x-request-id": "mine"})
    assert asked["id"] != "mine"
    assert asked["headers"]["x-request-id"] == "mine"


def test_no_other_headers_arrive(ask: Ask) -> None:
    """Neither credentials nor other headers, nor the body's user and metadata."""
    secret = "nowhere-to-be-seen"
    headers = {"Authorization": f"Bearer {secret}", "baggage": f"tenant={secret}"}
    asked = ask(
        {**headers, "x-anything": secret}, user=secret, metadata={"tenant": secret}, store=True
    )
    assert asked["metadata"] == {}
    assert secret not in str(asked)
