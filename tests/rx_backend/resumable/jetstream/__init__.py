"""Resumable streams over JetStream, on a real NATS server."""
