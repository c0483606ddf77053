"""
The types on the wire: requests in, chunks out, in the JSON of the Dynamo runtime.

Write them with `to_builtins` and read them with `convert_request`, `convert_output` and
`convert_annotated`; use any JSON library. Only these functions handle the complete wire form, with
null fields that must be written and a newer version's keys, which are kept in ``unknown``.

>>> to_builtins(LLMEngineOutput.error("boom"))["finish_reason"]
{'error': 'boom'}
>>> request = convert_request({"token_ids": [1], "new_key": 7})
>>> request.token_ids, request.unknown
([1], {'new_key': 7})
"""

from rx_backend.protocols._annotated import Annotated
from rx_backend.protocols._codec import (
    convert_annotated,
    convert_output,
    convert_request,
    to_builtins,
)
from rx_backend.protocols._finish_reason import FinishReason
from rx_backend.protocols._output import (
    CompletionTokensDetails,
    CompletionUsage,
    LLMEngineOutput,
    PromptTokensDetails,
    TopLogprob,
    TraceLink,
    usage,
)
from rx_backend.protocols._request import (
    BootstrapInfo,
    GuidedDecodingOptions,
    OutputOptions,
    PrefillResult,
    PreprocessedRequest,
    SamplingOptions,
    StopConditions,
)

__all__ = (
    "Annotated",
    "BootstrapInfo",
    "CompletionTokensDetails",
    "CompletionUsage",
    "FinishReason",
    "GuidedDecodingOptions",
    "LLMEngineOutput",
    "OutputOptions",
    "PrefillResult",
    "PreprocessedRequest",
    "PromptTokensDetails",
    "SamplingOptions",
    "StopConditions",
    "TopLogprob",
    "TraceLink",
    "convert_annotated",
    "convert_output",
    "convert_request",
    "to_builtins",
    "usage",
)
