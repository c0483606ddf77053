"""The workers' own tests once more, on etcd and NATS."""

from __future__ import annotations

import pytest

from tests.rx_backend.worker.test_chat import (
    client,
    served,
    test_an_engines_error_reaches_the_client,
    test_chat_streams_tokens_in_order,
    test_the_model_is_listed_with_its_context,
)
from tests.rx_backend.worker.test_disaggregated import (
    pair,
    test_an_early_disconnect_is_one_abort_after_the_first_token,
    test_bootstrap_info_is_handed_over_too,
    test_decode_continues_from_the_prefill_result,
    test_the_decode_span_links_to_the_prefill_span,
)
from tests.rx_backend.worker.test_disconnect import test_a_disconnect_is_one_abort
from tests.rx_backend.worker.test_migration import test_a_request_survives_its_worker
from tests.rx_backend.worker.test_shutdown import test_a_signal_loses_no_request

__all__ = (
    "client",
    "pair",
    "served",
    "test_a_disconnect_is_one_abort",
    "test_a_request_survives_its_worker",
    "test_a_signal_loses_no_request",
    "test_an_early_disconnect_is_one_abort_after_the_first_token",
    "test_an_engines_error_reaches_the_client",
    "test_bootstrap_info_is_handed_over_too",
    "test_chat_streams_tokens_in_order",
    "test_decode_continues_from_the_prefill_result",
    "test_the_decode_span_links_to_the_prefill_span",
    "test_the_model_is_listed_with_its_context",
)

pytestmark = [pytest.mark.cluster("nats"), pytest.mark.needs("dynamo"), pytest.mark.timeout(90)]
