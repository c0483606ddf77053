"""Engines found by name."""

from __future__ import annotations

import pytest

from rx_backend import InvalidArgument
from rx_backend.testing import load_engine_factory, run_conformance
from tests.engines import broken

HERE = "tests.engines.broken"


@pytest.mark.rows("K1")
def test_a_name_is_resolved_to_the_factory() -> None:
    """``module:name`` is what the module calls that name, and the kit can use it."""
    factory = load_engine_factory(f"{HERE}:CorrectEngine")
    assert factory is broken.CorrectEngine
    assert run_conformance(factory).ok
    assert callable(load_engine_factory(f"{HERE}:CorrectEngine.start"))


@pytest.mark.rows("K1")
@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("CorrectEngine", "expected module:name, got 'CorrectEngine'"),
        (":CorrectEngine", "expected module:name"),
        (f"{HERE}:", "expected module:name"),
        ("no_such_module:Engine", "no module named 'no_such_module'"),
        ("engines.py:Engine", "'engines.py:Engine'; write the module without .py"),
        ("./tests/engines.py:Engine", "expected module:name, got './tests/engines.py:Engine'; w"),
        (f"{HERE}.deeper:Engine", "no module named"),
        (f"{HERE}:Missing", "has no attribute 'Missing'"),
        (f"{HERE}:CorrectEngine.missing", "'CorrectEngine' has no attribute 'missing'"),
        (f"{HERE}:BROKEN", "got list"),
        ("..relative:Engine", "expected module:name"),
        ("my-engine:Engine", "expected module:name, got 'my-engine:Engine'"),
    ],
)
def test_an_invalid_engine_name_is_a_clear_error(target: str, message: str) -> None:
    """Each way to name nothing is an invalid argument that says what was wrong."""
    with pytest.raises(InvalidArgument, match="engine") as caught:
        load_engine_factory(target)
    assert message in caught.value.message


@pytest.mark.rows("K1")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("raise OSError('no device')", "OSError: no device"),
        ("import not_installed_here", "No module named 'not_installed_here'"),
        ("(", "SyntaxError"),
    ],
)
def test_a_module_that_cannot_be_imported_says_why(
    pytester: pytest.Pytester, content: str, message: str
) -> None:
    """A module that exists but fails is another mistake than one that does not; the cause is kept."""
    pytester.syspathinsert()
    pytester.makepyfile(engine_under_load=content)
    with pytest.raises(InvalidArgument, match="importing the module raised") as caught:
        load_engine_factory("engine_under_load:Engine")
    assert message in caught.value.message
    assert caught.value.__cause__ is not None
