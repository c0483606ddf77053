"""
The purpose of the deferred abort: a client disconnects during the transfer of its KV cache.

    python llama_leaving_client.py MODEL.gguf
    python llama_leaving_client.py MODEL.gguf --no-gate

A prefill and a decode engine run in this process, over a link that stops in the middle of a cache.
Then the client disconnects, and the link continues. With the gate the transfer is completed, and
the answer is cancelled after its first token. Without it the transfer is interrupted, and the
prefill engine keeps the cache for a peer that never comes.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec
from llama_disaggregated import DisaggregatedLlama
from pipelines import ungated

from rx_backend import EngineAdapter, PreprocessedRequest, standard_pipeline
from rx_backend.protocols import PrefillResult, SamplingOptions, StopConditions

_PIECE = 16 * 1024


@dataclass
class Scene:
    """
    The state after everything has ended.

    Attributes:
        finish_reason: How the client's stream ended.
        tokens: How many tokens it had.
        orphaned: Bytes of KV cache that the prefill engine keeps.
        quiescent: Whether the prefill engine may exit.
    """

    finish_reason: str
    tokens: int
    orphaned: int
    quiescent: bool


@dataclass
class Link:
    """A TCP link that stops after the first piece of the response, until it is released."""

    port: int
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    listening_port: int = 0

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None]:
        """Listen, and connect each caller with the link's other end."""
        async with await asyncio.start_server(self._connect, "127.0.0.1", 0) as server:
            self.listening_port = server.sockets[0].getsockname()[1]
            yield

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.port)
        await asyncio.gather(
            _forward(reader, far_writer), _forward(far_reader, writer, self._pause_once)
        )

    async def _pause_once(self) -> None:
        self.stopped.set()
        await self.released.wait()


async def _forward(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, after_piece: Any = None
) -> None:
    with suppress(ConnectionError):
        while piece := await reader.read(_PIECE):
            writer.write(piece)
            await writer.drain()
            if after_piece is not None:
                await after_piece()
    writer.close()


async def play(model: str, *, gate: bool = True, prompt: list[int] | None = None) -> Scene:
    """Disconnect a client in the middle of a transfer; return the final state."""
    request = PreprocessedRequest(
        token_ids=prompt or list(range(10, 210)),
        stop_conditions=StopConditions(max_tokens=20, ignore_eos=True),
        sampling_options=SamplingOptions(temperature=0),
    )
    async with AsyncExitStack() as stack:
        prefill, decode = (DisaggregatedLlama(model, mode=mode) for mode in ("prefill", "decode"))
        for engine in (prefill, decode):
            stack.push_async_callback(engine.cleanup)
            await engine.start(0)
        async with await EngineAdapter(prefill, mode="prefill").generate(request) as stream:
            (offered,) = [item.data async for item in stream if item.data]
        address = offered.disaggregated_params
        link = Link(address["port"])
        await stack.enter_async_context(link.open())
        address["port"] = link.listening_port
        pipeline = standard_pipeline if gate else ungated
        stream = await EngineAdapter(decode, mode="decode", pipeline=pipeline).generate(
            msgspec.structs.replace(
                request, prefill_result=PrefillResult(disaggregated_params=address)
            )
        )
        reading = asyncio.create_task(_read(stream))
        await link.stopped.wait()
        stream.context.stop_generating()  # the client disconnects
        await asyncio.wait([reading], timeout=0.5)
        link.released.set()
        reason, tokens = await reading
        orphaned = sum(map(len, prefill.offers.values()))
        return Scene(reason, tokens, orphaned, await prefill.is_quiescent())


async def _read(stream: Any) -> tuple[str, int]:
    chunks = [item.data async for item in stream if item.data]
    return str(chunks[-1].finish_reason), sum(len(chunk.token_ids) for chunk in chunks)


def main() -> None:
    """Run the scenario and print the final state."""
    parser = argparse.ArgumentParser(
        description="A client disconnects in the middle of a transfer."
    )
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--no-gate", action="store_true", help="abort at once")
    options = parser.parse_args()
    scene = asyncio.run(play(options.model, gate=not options.no_gate))
    lines = (
        f"the stream ended with:      {scene.finish_reason}, {scene.tokens} tokens",
        f"left at the prefill engine: {scene.orphaned:,} bytes",
        f"it may end:                 {'yes' if scene.quiescent else 'no'}",
    )
    print("\n".join(lines))  # noqa: T201 - its purpose


if __name__ == "__main__":
    main()
