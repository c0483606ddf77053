"""The FastAPI service in ``examples`` with a model on llama.cpp, as the official client sees it."""

from __future__ import annotations

import os
from typing import Any

import httpx
import pytest
from openai import OpenAI

from rx_backend.resumable import parse_event_id
from tests.real.tiny_model import RealModel
from tests.rx_backend.web.servers import ROOT, running

pytestmark = pytest.mark.needs("fastapi", "jinja2", "transformers", "gguf", "xllamacpp", "uvicorn")


def test_a_resumed_chat(tiny_model: RealModel) -> None:
    """Its text is that of the model's tokenizer, and a client that comes back gets the rest of it."""
    environment = {**os.environ, "MODEL": str(tiny_model.gguf)}
    asked: dict[str, Any] = {
        "model": "m",
        "messages": [{"role": "user", "content": "the next word of a stream"}],
        "max_tokens": 40,
        "temperature": 0.0,
        "stream": True,
    }
    with (
        running(
            "uvicorn", "fastapi_service:app", cwd=ROOT / "examples", env=environment, starts_s=90
        ) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        create: Any = client.chat.completions.create
        chunks = list(create(**asked))
        whole = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert whole
        url = f"{server.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=asked) as response:
            ids = (line[4:] for line in response.iter_lines() if line.startswith("id: "))
            # A reader that is behind gets several items as one.
            last = next(found for found in ids if parse_event_id(found)[1] >= 10)
        rest = create(**asked, extra_headers={"Last-Event-ID": last})
        text = "".join(chunk.choices[0].delta.content or "" for chunk in rest)
        assert 0 < len(text) < len(whole)
        assert whole.endswith(text)
