"""
llama.cpp as a C library: its structures, functions and log.

The library is the one in the package `xllamacpp`, whose wheels need no compiler. It exports the C
API of ``llama.h``; the structures here match the version pinned by the extra ``engine-llama-cpp``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, Structure, c_bool, c_char_p, c_float, c_int32, c_size_t, c_uint32
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from rx_backend.extras import missing_extra
from rx_backend.logger import get_logger

__all__ = ("Batch", "Library", "check_installed", "library")

_log = get_logger(__name__)


class _ModelParams(Structure):
    _fields_ = (
        ("devices", ctypes.c_void_p),
        ("tensor_buft_overrides", ctypes.c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int32),
        ("load_mode", c_int32),
        ("lazy_mode", c_int32),
        ("main_gpu", c_int32),
        ("tensor_split", ctypes.c_void_p),
        ("progress_callback", ctypes.c_void_p),
        ("progress_callback_user_data", ctypes.c_void_p),
        ("kv_overrides", ctypes.c_void_p),
        ("switches", c_bool * 6),
    )


class _ContextParams(Structure):
    _fields_ = (
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("kinds", c_int32 * 5),
        ("rope_and_yarn", c_float * 6),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", ctypes.c_void_p),
        ("cb_eval_user_data", ctypes.c_void_p),
        ("type_k", c_int32),
        ("type_v", c_int32),
        ("moe_cache_size", c_size_t),
        ("abort_callback", ctypes.c_void_p),
        ("abort_callback_data", ctypes.c_void_p),
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("samplers", ctypes.c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", ctypes.c_void_p),
    )


class Batch(Structure):
    """Tokens to compute, as ``llama_batch``."""

    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(ctypes.c_int8)),
    )


class _ChainParams(Structure):
    _fields_ = (("no_perf", c_bool),)


_P: Final = ctypes.c_void_p
_LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, _P)

# Name without `llama_`: the type of the result, and of the arguments.
_SIGNATURES: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "log_set": (None, (_LogCallback, _P)),
    "backend_init": (None, ()),
    "model_default_params": (_ModelParams, ()),
    "model_load_from_file": (_P, (c_char_p, _ModelParams)),
    "model_free": (None, (_P,)),
    "model_n_ctx_train": (c_int32, (_P,)),
    "model_meta_val_str": (c_int32, (_P, c_char_p, c_char_p, c_size_t)),
    "model_get_vocab": (_P, (_P,)),
    "vocab_type": (c_int32, (_P,)),
    "vocab_n_tokens": (c_int32, (_P,)),
    "vocab_is_eog": (c_bool, (_P, c_int32)),
    "token_to_piece": (c_int32, (_P, c_int32, c_char_p, c_int32, c_int32, c_bool)),
    "context_default_params": (_ContextParams, ()),
    "init_from_model": (_P, (_P, _ContextParams)),
    "free": (None, (_P,)),
    "decode": (c_int32, (_P, Batch)),
    "get_logits_ith": (POINTER(c_float), (_P, c_int32)),
    "get_memory": (_P, (_P,)),
    "memory_seq_rm": (c_bool, (_P, c_int32, c_int32, c_int32)),
    "memory_seq_pos_max": (c_int32, (_P, c_int32)),
    "state_seq_get_size": (c_size_t, (_P, c_int32)),
    "state_seq_get_data": (c_size_t, (_P, _P, c_size_t, c_int32)),
    "state_seq_set_data": (c_size_t, (_P, c_char_p, c_size_t, c_int32)),
    "sampler_chain_default_params": (_ChainParams, ()),
    "sampler_chain_init": (_P, (_ChainParams,)),
    "sampler_chain_add": (None, (_P, _P)),
    "sampler_init_greedy": (_P, ()),
    "sampler_init_dist": (_P, (c_uint32,)),
    "sampler_init_top_k": (_P, (c_int32,)),
    "sampler_init_top_p": (_P, (c_float, c_size_t)),
    "sampler_init_min_p": (_P, (c_float, c_size_t)),
    "sampler_init_temp": (_P, (c_float,)),
    "sampler_init_penalties": (_P, (c_int32, c_int32, c_float, c_float, c_float)),
    "sampler_accept": (None, (_P, c_int32)),
    "sampler_sample": (c_int32, (_P, _P, c_int32)),
    "sampler_free": (None, (_P,)),
}


_OTHER_VERSION: Final = (
    "the installed xllamacpp has another version of llama.cpp than this library is made for: "
    "install the one that its extra engine-llama-cpp names"
)


class Library:
    """The C functions, by their names without `llama_`."""

    def __init__(self, path: Path) -> None:
        shared = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(shared, f"llama_{name}", None)
            if function is None:
                raise ImportError(_OTHER_VERSION)
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        self._check_layout()
        self.log_set(_pass_on_log, None)
        self.backend_init()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        raise AttributeError(f"llama_{name} has no signature here")

    def _check_layout(self) -> None:
        """Reject a llama.cpp with other structures: known defaults are not where they should be."""
        context, model = self.context_default_params(), self.model_default_params()
        known = (context.n_batch, context.n_ubatch, context.type_k, context.defrag_thold)
        flags = (context.offload_kqv, context.embeddings, context.n_samplers, context.ctx_other)
        if known != (2048, 512, 1, -1.0) or flags != (True, False, 0, None) or model.main_gpu:
            raise ImportError(_OTHER_VERSION)


@_LogCallback
def _pass_on_log(level: int, text: bytes, _: object) -> None:
    """Log a line of llama.cpp, which would otherwise go to stderr."""
    if line := text.decode(errors="replace").strip():
        _log.debug("llama.cpp", line=line, ggml_level=level)


def check_installed() -> None:
    """
    Check that the extra's packages are installed.

    Raises:
        ImportError: One is missing; the message names what to install.
    """
    for name in ("numpy", "xllamacpp"):
        if find_spec(name) is None:
            raise missing_extra("engine-llama-cpp", package=name, needed_by="LlamaCppEngine")


@cache
def library() -> Library:
    """
    Load llama.cpp, once.

    Raises:
        ImportError: It is not installed, or has another version.
    """
    check_installed()
    spec = find_spec("xllamacpp")
    folders = (spec and spec.submodule_search_locations) or []
    return Library(next(file for folder in folders for file in Path(folder).glob("xllamacpp*.so")))
