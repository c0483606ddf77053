"""A llama-server: ``python -m tests.real.llama_server MODEL.gguf PORT``."""

from __future__ import annotations

import signal
import sys
from importlib import import_module
from typing import Any

from tests.real.tiny_model import CONTEXT_LENGTH

SLOTS = 4


def serve(model: str, port: int) -> None:
    """Serve until a signal ends the process."""
    xllamacpp: Any = import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_ctx = SLOTS * CONTEXT_LENGTH
    params.n_parallel = SLOTS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.endpoint_slots = True
    params.warmup = False
    server = xllamacpp.Server(params)
    signal.pause()
    del server


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
