"""No text of a user's, of a model's or of an error is logged, and no token ids."""

from __future__ import annotations

import asyncio
import logging

from hypothesis import given
from hypothesis import strategies as st

from rx_backend.context import RequestContext
from rx_backend.errors import Disconnected, InvalidArgument
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest, StopConditions
from rx_backend.testing import run_virtual
from tests.engines import ScriptedEngine, Step, adapter_of, collect, stop
from tests.rx_backend.telemetry._ends import SECRET
from tests.spans import Spans

SECRET_ID = 987_654_321
SECRET_CHUNK = LLMEngineOutput([SECRET_ID], text=SECRET, engine_data={"said": SECRET})
SECRET_STEPS: st.SearchStrategy[list[Step]] = st.lists(
    st.sampled_from([SECRET_CHUNK, LLMEngineOutput(), 1, RequestContext.stop_generating]),
    max_size=4,
)
SECRET_ENDS: st.SearchStrategy[list[Step]] = st.sampled_from(
    [
        *([stop()], [], [60], [SECRET_CHUNK, 60], [LLMEngineOutput.error(SECRET)]),
        *([Disconnected(SECRET)], [ValueError(SECRET)], [{"token_ids": SECRET}]),
    ]
)


@given(
    SECRET_STEPS, SECRET_ENDS, st.booleans(), st.integers(1, 3), st.sampled_from(["agg", "decode"])
)
def test_no_user_text_is_logged_at_any_level(
    script: list[Step], end: list[Step], fails_early: bool, patience: int, mode: str
) -> None:
    """Neither of the prompt nor generated, nor of errors, nor token ids; whatever happens."""
    asked = PreprocessedRequest(
        token_ids=[SECRET_ID] * 3,
        extra_args={"prompt": SECRET},
        annotations=[SECRET],
        stop_conditions=StopConditions(stop=[SECRET]),
    )
    engine = ScriptedEngine(
        *script,
        *end,
        setup=[ValueError(SECRET)] if fails_early else [],
        abort=[KeyError(SECRET)],
        closing=[0.5],
    )

    def hear() -> None:
        raise RuntimeError(SECRET)

    async def serve() -> None:
        context = RequestContext("r1")
        context.stopped().listen(hear)
        try:
            async with asyncio.timeout(patience):
                stream = await adapter_of(engine, mode, Spans()).generate(asked, context)
                async with stream:
                    await collect(stream)
        except (TimeoutError, InvalidArgument):
            pass
        await asyncio.sleep(5)

    records = _Records()
    logging.root.addHandler(records)
    level = logging.root.level
    logging.root.setLevel(logging.DEBUG)
    try:
        run_virtual(serve())
    finally:
        logging.root.setLevel(level)
        logging.root.removeHandler(records)
    told = repr(records.told)
    assert "request started" in told
    assert (SECRET in told, str(SECRET_ID) in told) == (False, False)


class _Records(logging.Handler):
    """Keeps all that there is of records."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(f"{logging.Formatter().format(record)} {vars(record)}")
