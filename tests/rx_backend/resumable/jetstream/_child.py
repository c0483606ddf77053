"""
One web process: begins an answer and reads it, and tells its id and how far it is, a line each.

Arguments: the server's URL, the number of tokens, the seconds between them, and the lease in seconds.
"""

from __future__ import annotations

import asyncio
import sys

from tests.rx_backend.resumable.jetstream._answers import CountingEngine, process, request


def tell(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


async def main(url: str, max_tokens: str, interval_s: str, lease_s: str) -> None:
    engine = CountingEngine(float(interval_s))
    async with process(url, engine, lease_s=float(lease_s)) as streams:
        async with await streams.start(request(int(max_tokens)), owner="me") as reader:
            tell("id", reader.stream_id)
            async for item in reader:
                ids = [] if item.data is None else item.data.token_ids
                tell("read", reader.position, *ids)
            tell("end")
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
