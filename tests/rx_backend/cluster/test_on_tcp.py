"""The workers' own tests once more, on etcd and TCP, which is what most deployments run on."""

from __future__ import annotations

import pytest

from tests.rx_backend.worker.test_chat import (
    client,
    test_an_engines_error_reaches_the_client,
    test_chat_streams_tokens_in_order,
)
from tests.rx_backend.worker.test_migration import test_a_request_survives_its_worker
from tests.rx_backend.worker.test_shutdown import test_what_is_left_at_the_deadline_is_stopped

__all__ = (
    "client",
    "test_a_request_survives_its_worker",
    "test_an_engines_error_reaches_the_client",
    "test_chat_streams_tokens_in_order",
    "test_what_is_left_at_the_deadline_is_stopped",
)

pytestmark = [pytest.mark.cluster("tcp"), pytest.mark.needs("dynamo"), pytest.mark.timeout(90)]
