"""The error for a setting that can't be used, which is none of the engine's."""

from __future__ import annotations

from rx_backend.errors import InvalidArgument

__all__ = ("BadSetting",)


class BadSetting(InvalidArgument):
    """An option, a variable or the installation does not fit; found before anything is served."""
