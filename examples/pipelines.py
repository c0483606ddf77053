"""A pipeline of one's own: the standard operators, and one that reports what was given."""

from operators import AnyOperator, Stage, operator
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
