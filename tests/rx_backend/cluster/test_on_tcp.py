"""The workers' own tests once more, on etcd and TCP, which is what most deployments run on."""

from __future__ import annotations

import pytest

from tests.rx_backend.worker.test_chat import (
    client,
    served,
    test_an_engines_error_reaches_the_client,
    test_chat_streams_tokens_in_order,
)
from tests.rx_backend.worker.test_migration import test_a_request_survives_its_worker

__all__ = (
    "client",
    "served",
    "test_a_request_survives_its_worker",
    "test_an_engines_error_reaches_the_client",
    "test_chat_streams_tokens_in_order",
)

pytestmark = [pytest.mark.cluster("tcp"), pytest.mark.needs("dynamo"), pytest.mark.timeout(90)]
