"""Streams that a client can come back to."""
