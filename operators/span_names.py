"""
The names and fixed texts that a request's span carries (rows P2 to P5, T1).

Those that begin with ``gen_ai.`` and ``error.`` are OpenTelemetry's; times under them are in seconds.
"""

from __future__ import annotations

from typing import Final

__all__ = (
    "ABORT_CALLED",
    "ABORT_REQUESTED",
    "ABORT_SUPPRESSED",
    "AVG_ITL_MS",
    "CANCELLED",
    "DISAGG_ROLE",
    "DROPPED",
    "DROPPED_STATUS",
    "ERROR_KIND",
    "ERROR_TERMINAL",
    "ERROR_TYPE",
    "FINISH_REASON",
    "FINISH_REASONS",
    "FIRST_TOKEN",
    "INPUT_TOKENS",
    "ITL_MAX_MS",
    "ITL_P50_MS",
    "ITL_P99_MS",
    "MIGRATION_SPAN_ID",
    "MIGRATION_TRACE_ID",
    "MODEL",
    "OPERATION_NAME",
    "OUTPUT_TOKENS",
    "PROVIDER_NAME",
    "QUEUE_MS",
    "REQUEST_MAX_TOKENS",
    "REQUEST_MODEL",
    "REQUEST_STREAM",
    "REQUEST_TEMPERATURE",
    "REQUEST_TOP_P",
    "SETUP_FAILED",
    "SETUP_MS",
    "SPAN_NAME",
    "STOP",
    "TIME_IN_QUEUE",
    "TIME_TO_FIRST_CHUNK",
    "TTFT_MS",
    "USAGE_INPUT_TOKENS",
    "USAGE_OUTPUT_TOKENS",
)

SPAN_NAME: Final = "engine.generate"

MODEL: Final = "model"
INPUT_TOKENS: Final = "input_tokens"
DISAGG_ROLE: Final = "disagg_role"
SETUP_MS: Final = "setup_ms"
QUEUE_MS: Final = "queue_ms"
TTFT_MS: Final = "ttft_ms"
OUTPUT_TOKENS: Final = "output_tokens"
FINISH_REASON: Final = "finish_reason"
CANCELLED: Final = "cancelled"
ERROR_KIND: Final = "error_kind"
AVG_ITL_MS: Final = "avg_itl_ms"
ITL_P50_MS: Final = "itl_p50_ms"
ITL_P99_MS: Final = "itl_p99_ms"
ITL_MAX_MS: Final = "itl_max_ms"
MIGRATION_TRACE_ID: Final = "migration_trace_id"
MIGRATION_SPAN_ID: Final = "migration_span_id"

DROPPED: Final = "Dropped"
DROPPED_STATUS: Final = "stream dropped before terminal"
SETUP_FAILED: Final = "setup_failed"
ERROR_TERMINAL: Final = "ErrorTerminal"

OPERATION_NAME: Final = "gen_ai.operation.name"
PROVIDER_NAME: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_STREAM: Final = "gen_ai.request.stream"
REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
REQUEST_TOP_P: Final = "gen_ai.request.top_p"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
USAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
TIME_IN_QUEUE: Final = "gen_ai.latency.time_in_queue"
ERROR_TYPE: Final = "error.type"

# Events.
FIRST_TOKEN: Final = "first_token"  # noqa: S105  # no password
STOP: Final = "stop"
ABORT_REQUESTED: Final = "abort_requested"
ABORT_CALLED: Final = "abort_called"
ABORT_SUPPRESSED: Final = "abort_suppressed"
