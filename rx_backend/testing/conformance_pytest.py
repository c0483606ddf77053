"""The conformance kit as tests of ``pytest``, one per rule."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Unpack

from rx_backend.testing.conformance import ConformanceOptions, EngineFactory, run_conformance
from rx_backend.testing.conformance_report import ConformanceError, ConformanceReport, Rule

__all__ = ("engine_conformance_tests",)


def engine_conformance_tests(
    factory: EngineFactory, *, virtual: bool = True, **options: Unpack[ConformanceOptions]
) -> Callable[[Rule], None]:
    """
    Make a test that ``pytest`` runs once per rule of the engine contract (row K1).

    Two lines in a test file are enough::

        from rx_backend.testing import engine_conformance_tests
        test_conformance = engine_conformance_tests(MyEngine)

    The engine is checked once, with the first of the tests that runs.

    Args:
        factory: Makes a fresh engine.
        virtual: See ``run_conformance``.
        **options: See ``ConformanceOptions``.

    Raises:
        ImportError: ``pytest`` is not installed.
    """
    import pytest  # noqa: PLC0415  # only those who test have it

    @cache
    def report() -> ConformanceReport:
        return run_conformance(factory, virtual=virtual, **options)

    @pytest.mark.parametrize("rule", list(Rule), ids=str)
    def test_engine_conformance(rule: Rule) -> None:
        violation = report().violation(rule)
        if violation is not None:
            raise ConformanceError(
                ConformanceReport(report().engine, [violation], report().unchecked)
            )
        if rule in report().unchecked:
            pytest.fail(f"{rule} ({rule.row}): not checked, the engine did not start")

    return test_engine_conformance
