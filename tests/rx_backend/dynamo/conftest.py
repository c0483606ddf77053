"""Every test here has a cluster of its own."""

from tests.rx_backend.dynamo._runtime import discovery

__all__ = ("discovery",)
