"""An engine under its former name, for a suite that still imports it from here."""

from tests.engines.broken import DuckEngine

__all__ = ("DuckEngine",)
