"""Custom pipelines: the standard operators and another one."""

from operators import Drains, Pipeline, deferred_abort, drain_until_first_token, heartbeat
from operators.authoring import SCOPE, Stage, operator
from rx_backend import Annotated, LLMEngineOutput, RequestScope, standard_pipeline

Item = Annotated[LLMEngineOutput]


@operator
def report_tokens(*, scope: RequestScope = SCOPE) -> Stage[Item, Item]:
    """Print how many tokens the client received, however the stream ends."""
    total = 0
    try:
        item = yield
        while True:
            total += len(item.data.token_ids) if item.data else 0
            item = yield item
    finally:
        print(f"request {scope.id}: {total} tokens", flush=True)  # noqa: T201 - its purpose


reporting = standard_pipeline.with_operators(report_tokens())
"""For `rx-backend serve --pipeline pipelines:reporting`."""

_beating = standard_pipeline.with_operators(heartbeat(1.0, Annotated(LLMEngineOutput())))


def beating(scope: RequestScope) -> Pipeline:
    """Send an empty chunk after each second of silence, so that every disconnect is noticed."""
    # That would close a decode request in the middle of its transfer.
    return standard_pipeline if scope.mode.is_decode else _beating


drains = Drains()

draining = standard_pipeline.insert_after("deferred_abort", drain_until_first_token(drains=drains))
"""A decode request whose client has disconnected continues to its first token, then is aborted."""

ungated = standard_pipeline.replace("deferred_abort", deferred_abort(defer=False))
"""Abort at once, also in decode mode; for `llama_leaving_client.py`, which shows the effect."""
