"""The per-request options of transformers' continuous batching: temperature, top-k and top-p."""

from __future__ import annotations

import copy
from typing import Any, Final

from rx_backend.engines.request_checks import GREEDY_BELOW
from rx_backend.protocols import SamplingOptions

__all__ = ("HONOURED", "Sampling")

HONOURED: Final = frozenset(
    f"sampling_options.{name}" for name in ("temperature", "top_k", "top_p")
)
"""The options that a request may set."""

# Larger than any vocabulary; transformers limits it.
_ALL: Final = 2**31 - 1

# Among equally likely tokens, top-k keeps all; an empty nucleus keeps one.
_GREEDY: Final = {"temperature": 1.0, "top_k": 1, "top_p": 0.0}


class Sampling:
    """
    A model's own options, overridden by those of a request.

    Args:
        own: The model's generation config from transformers.

    Attributes:
        end_ids: The ids that end its text.
    """

    def __init__(self, own: Any) -> None:
        self._own = own
        ends = own.eos_token_id
        ids = [ends] if isinstance(ends, int) else list(ends or ())
        self.end_ids = frozenset(token_id for token_id in ids if token_id >= 0)

    def for_all(self) -> Any:
        """
        Return the config for creating a manager.

        Its values are placeholders: an option without effect here could not be set per request.
        """
        config = copy.deepcopy(self._own)
        config.update(do_sample=True, temperature=0.5, top_k=1, top_p=0.5)
        config.update(num_return_sequences=1, num_beams=1)
        return config

    def options(self, asked: SamplingOptions) -> dict[str, Any]:
        """Return the options of a request; unset ones come from the model's config."""
        own = self._own
        temperature = asked.temperature
        if temperature is None:
            temperature = (1.0 if own.temperature is None else own.temperature) * bool(
                own.do_sample
            )
        if temperature < GREEDY_BELOW:
            return _GREEDY
        top_k = own.top_k if asked.top_k is None else asked.top_k
        top_p = own.top_p if asked.top_p is None else asked.top_p
        return {
            "temperature": temperature,
            "top_k": top_k if top_k and top_k > 0 else _ALL,
            "top_p": 1.0 if top_p is None else top_p,
        }
