"""
The types on the wire: requests in, chunks out, in the JSON of the Dynamo runtime.

Write them with `to_builtins` or `encode`, read them with `convert_request`, `convert_output` and the
like. Only these functions know the whole wire form: which fields are written although they are null,
and which keys of a newer version are kept in ``unknown``.

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
