"""
The types on the wire: requests in, chunks out, equal in JSON to what the Dynamo runtime speaks.

Build them, read their fields, and pass them through `to_builtins` or `encode` on the way out and
`convert_request`, `convert_output` and the like on the way in. Only these functions know the whole
wire form: which fields are written although they are null, and where keys that this version does
not know are kept.

>>> encode(LLMEngineOutput.error("boom"))[-46:]
b'"finish_reason":{"error":"boom"},"index":null}'
>>> request = decode_request('{"token_ids": [1], "new_key": 7}')
>>> request.token_ids, request.unknown
([1], {'new_key': 7})
"""

from rx_backend.protocols._annotated import Annotated
from rx_backend.protocols._codec import (
    convert_annotated,
    convert_output,
    convert_request,
    decode_annotated,
    decode_output,
    decode_request,
    encode,
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
    "decode_annotated",
    "decode_output",
    "decode_request",
    "encode",
    "to_builtins",
    "usage",
)
