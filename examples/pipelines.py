"""Pipelines of one's own: the standard operators, and one that is added."""

from operators import (
    AnyOperator,
    Drains,
    OperatorList,
    Stage,
    drain_until_first_token,
    heartbeat,
    operator,
)
from rx_backend import Annotated, LLMEngineOutput, RequestScope, standard_pipeline

Item = Annotated[LLMEngineOutput]


@operator
def report_tokens(request_id: str) -> Stage[Item, Item]:
    """Print how many tokens the client was given, however the stream ends."""
    total = 0
    try:
        item = yield
        while True:
            total += len(item.data.token_ids) if item.data else 0
            item = yield item
    finally:
        print(f"request {request_id}: {total} tokens", flush=True)  # noqa: T201 - its purpose


def reporting(scope: RequestScope) -> list[AnyOperator]:
    """Give a request's operators; for `rx-backend serve --pipeline pipelines:reporting`."""
    return [*standard_pipeline(scope), report_tokens(scope.context.id)]


def beating(scope: RequestScope) -> list[AnyOperator]:
    """Give an empty chunk each second in which the engine is silent: so every client is heard leave."""
    standard = standard_pipeline(scope)
    if scope.mode.is_decode:
        # There it would close a stream in mid-transfer.
        return [*standard]
    return [*standard, heartbeat(1.0, Annotated(LLMEngineOutput()))]


drains = Drains()


def draining(scope: RequestScope) -> OperatorList:
    """Let a decode request whose client is gone go on to its first token, then abort it."""
    standard = standard_pipeline(scope)
    if not scope.mode.is_decode:
        return standard
    context = scope.context
    drain = drain_until_first_token(
        context.stop_generating, drains=drains, notified=context.first_token(), label=context.id
    )
    return standard.insert_after("deferred_abort", drain)
