"""`rx-backend dynamo`: a worker of Dynamo's kind runs unmodified, its answers through a pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from operators import Pipeline, limit_tokens
from rx_backend import RequestScope, standard_pipeline
from rx_backend.worker.dynamo_worker import with_pipeline
from tests.engines import real_time
from tests.rx_backend.dynamo._runtime import ENVIRONMENT, cluster, new_context, received, settled
from tests.rx_backend.dynamo.test_outlet import Client
from tests.rx_backend.worker._processes import START_S, Served, dynamo, until
from tests.rx_backend.worker.dynamo_module import ENDLESS, LOST, REFUSED, WHOLE

pytestmark = [pytest.mark.needs("dynamo"), pytest.mark.timeout(60)]

MODULE = "tests.rx_backend.worker.dynamo_module"


def three(scope: RequestScope) -> Pipeline:
    """End an answer at its third token, unless it is to be endless."""
    if scope.request.token_ids == [ENDLESS]:
        return standard_pipeline
    return standard_pipeline.insert_after("until_terminal", limit_tokens(3))


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Generator[Served]:
    """A worker with a pipeline of three tokens, and this process beside it in discovery."""
    folder = tmp_path_factory.mktemp("dynamo")
    with (
        pytest.MonkeyPatch.context() as patch,
        dynamo(
            folder, "--pipeline", f"{__name__}:three", MODULE, "--pipeline", "its own"
        ) as served,
    ):
        for name, value in {**ENVIRONMENT, "DYN_FILE_KV": str(folder / "discovery")}.items():
            patch.setenv(name, value)
        served.line("argv", START_S)
        yield served


@asynccontextmanager
async def endpoint(name: str = "generate") -> AsyncGenerator[Any]:
    async with cluster() as joined:
        yield await joined.client(name)


def request(what: int, max_tokens: int | None = None) -> dict[str, Any]:
    return {"model": "m", "token_ids": [what], "stop_conditions": {"max_tokens": max_tokens}}


@pytest.mark.rows("E2", "S6")
def test_a_handler_named_generate_is_served_through_the_pipeline(worker: Served) -> None:
    """The pipeline ends an answer; log-probs stay; errors keep their kind, a 4xx is the client's."""

    @real_time
    async def ask() -> None:
        async with endpoint() as client:
            chunks = await received(client.generate(request(WHOLE, 5), context=new_context("r1")))
            assert [chunk["token_ids"] for chunk in chunks] == [[0], [1], [2]]
            assert [chunk["log_probs"] for chunk in chunks] == [[-0.5]] * 3
            assert chunks[-1]["finish_reason"] == "length"
            # What the client says of these two kinds.
            for what, error in (
                (REFUSED, r"^HTTP 422: not like this$"),
                (LOST, "^Unavailable: gone$"),
            ):
                with pytest.raises(Exception, match=error):
                    await received(client.generate(request(what, 2)))

    ask()
    assert until(lambda: worker.count("over r1 killed=False") == 1, worker)


def test_a_disconnect_ends_the_handlers_stream(worker: Served) -> None:
    """The handler is notified by the runtime's own context, and its generator is closed."""

    @real_time
    async def leave() -> None:
        async with endpoint() as client:
            context = new_context("r2")
            stream = await client.generate(request(ENDLESS), context=context)
            await anext(stream)
            context.stop_generating()

    leave()
    assert until(lambda: [line for line in worker.seen if line.startswith("over r2")], worker)


@pytest.mark.rows("E2")
@real_time
async def test_other_items_and_handlers_are_served_unchanged(worker: Served) -> None:
    """A request without a prompt of tokens, another handler, one that takes no context."""
    async with endpoint() as client:
        text = {"messages": [{"role": "user", "content": "Hello"}]}
        assert await received(client.generate(text)) == [{"echo": text}]
    async with endpoint("flush") as client:
        assert await received(client.generate({"token_ids": [1]})) == [
            {"flushed": {"token_ids": [1]}}
        ]
    async with endpoint("alone") as client:
        (chunk,) = await received(client.generate(request(7)))
        assert (chunk["token_ids"], chunk["finish_reason"]) == ([7], "length")


@pytest.mark.rows("S4")
@real_time
async def test_a_client_that_does_not_read_blocks_only_a_thread() -> None:
    """As behind a pipeline; all that is passed on unchanged arrives, in order."""

    async def generate(request: dict[str, int]) -> AsyncGenerator[dict[str, Any]]:
        for number in range(request["number"]):
            yield {"number": number, "embedding": "x" * 1000}

    client = Client(room=100_000)
    stream = with_pipeline(generate)({"number": 500}, new_context("r"), client)
    pushing = asyncio.ensure_future(anext(stream, None))
    await settled(lambda: client.room < 0)
    client.reads.set()
    assert await pushing is None
    assert [frame["number"] for frame in client.frames] == list(range(500))
    assert client.is_closed


def test_the_module_has_its_arguments_and_its_processes_are_untouched(worker: Served) -> None:
    """What follows the module is the module's own; a process that it spawns has the runtime's class."""
    assert worker.count("argv ['--pipeline', 'its own']") == 1
    (child,) = (line.split() for line in worker.seen if line.startswith("child"))
    assert child == ["child", "__mp_main__", "Endpoint.serve_endpoint"]


@pytest.mark.parametrize(
    ("argument", "code", "line"), [("--bad", 2, ""), ("--full-disk", 1, "OSError: no space left")]
)
def test_a_module_that_ends_by_itself(tmp_path: Path, argument: str, code: int, line: str) -> None:
    """The exit code and the traceback are its own."""
    with dynamo(tmp_path, MODULE, argument) as served:
        assert served.ended(START_S) == code
        assert line in "".join(served.seen)
