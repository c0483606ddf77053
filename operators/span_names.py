"""The names and fixed texts that a request's span carries (rows P2 to P5, T1)."""

from __future__ import annotations

from typing import Final

__all__ = (
    "AVG_ITL_MS",
    "CANCELLED",
    "DISAGG_ROLE",
    "DROPPED",
    "DROPPED_STATUS",
    "ERROR_KIND",
    "FINISH_REASON",
    "INPUT_TOKENS",
    "ITL_MAX_MS",
    "ITL_P50_MS",
    "ITL_P99_MS",
    "MIGRATION_SPAN_ID",
    "MIGRATION_TRACE_ID",
    "MODEL",
    "OUTPUT_TOKENS",
    "SETUP_FAILED",
    "SETUP_MS",
    "SPAN_NAME",
    "TTFT_MS",
)

SPAN_NAME: Final = "engine.generate"

MODEL: Final = "model"
INPUT_TOKENS: Final = "input_tokens"
DISAGG_ROLE: Final = "disagg_role"
SETUP_MS: Final = "setup_ms"
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
