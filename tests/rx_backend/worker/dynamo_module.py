"""
A worker as Dynamo's own are: a module that makes its runtime and serves its handlers.

It writes a line for each thing that happens. Arguments: what it tells to have been given.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
from collections.abc import AsyncGenerator
from importlib import import_module
from typing import Any

runtime = import_module("dynamo.runtime")
exceptions = import_module("dynamo.llm.exceptions")

WHOLE, REFUSED, LOST, ENDLESS = 1, 2, 3, 4
"""What the first token of a prompt asks for."""


def tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Handler:
    async def generate(self, request: dict[str, Any], context: Any) -> AsyncGenerator[Any]:
        if "token_ids" not in request:
            yield {"echo": request}
            return
        (what,) = request["token_ids"]
        stop = request["stop_conditions"]
        context.notify_first_token()
        if what == REFUSED:
            raise exceptions.HttpError(422, "not like this")
        try:
            for token in range(stop.get("max_tokens") or sys.maxsize):
                yield {"token_ids": [token], "log_probs": [-0.5], "index": 0}
                if what == LOST:
                    raise exceptions.Disconnected("gone")
                await asyncio.sleep(0.001)
            yield {"token_ids": [], "index": 0, "finish_reason": "stop"}
        finally:
            tell(f"over {context.id()} killed={context.is_killed()}")

    async def flush(self, request: Any = None) -> AsyncGenerator[Any]:
        yield {"flushed": request}


class Alone:
    async def generate(self, request: dict[str, Any]) -> AsyncGenerator[Any]:
        yield {"token_ids": request["token_ids"], "finish_reason": "length"}


def look() -> None:
    """In a process of the worker's: is it as it would be without us?"""
    tell(f"child {__name__} {runtime.Endpoint.serve_endpoint.__qualname__}")


@runtime.dynamo_worker()
async def worker(joined: Any) -> None:
    tell(f"argv {sys.argv[1:]}")
    handler = Handler()
    served = [
        joined.endpoint("rx.backend.generate").serve_endpoint(
            handler.generate, graceful_shutdown=True, metrics_labels=[("model", "m")]
        ),
        joined.endpoint("rx.backend.alone").serve_endpoint(Alone().generate),
        joined.endpoint("rx.backend.flush").serve_endpoint(handler.flush),
    ]
    await asyncio.gather(*served)


def main() -> None:
    if sys.argv[1:] == ["--bad"]:
        sys.exit(2)
    if sys.argv[1:] == ["--full-disk"]:
        raise OSError("no space left")
    child = multiprocessing.get_context("spawn").Process(target=look)
    child.start()
    child.join()
    asyncio.run(worker())


if __name__ == "__main__":
    main()
