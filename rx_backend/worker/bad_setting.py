"""The error for an invalid setting of the worker, as opposed to the engine's."""

from __future__ import annotations

from rx_backend.errors import InvalidArgument

__all__ = ("BadSetting",)


class BadSetting(InvalidArgument):
    """An option, a variable or the installation is invalid; raised before anything is served."""
