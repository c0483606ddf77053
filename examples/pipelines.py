"""Pipelines of one's own: the standard operators, and one that is added."""

from operators import Drains, Pipeline, drain_until_first_token, heartbeat
from operators.authoring import SCOPE, Stage, operator
from rx_backend import Annotated, LLMEngineOutput, RequestScope, standard_pipeline

Item = Annotated[LLMEngineOutput]


@operator
def report_tokens(*, scope: RequestScope = SCOPE) -> Stage[Item, Item]:
    """Print how many tokens the client was given, however the stream ends."""
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
    """Send an empty chunk for each second of silence, so that every client is seen to leave."""
    # In a decode request that would close a stream in mid-transfer.
    return standard_pipeline if scope.mode.is_decode else _beating


drains = Drains()

draining = standard_pipeline.insert_after("deferred_abort", drain_until_first_token(drains=drains))
"""A decode request whose client is gone runs to its first token, and is aborted then."""
