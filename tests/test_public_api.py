"""What modules say they export is what they export."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

import operators
import rx_backend
from operators import assembly, authoring


def module_names() -> list[str]:
    names = ["operators", "rx_backend"]
    for package in (operators, rx_backend):
        prefix = f"{package.__name__}."
        names += [module.name for module in pkgutil.walk_packages(package.__path__, prefix)]
    return sorted(name for name in names if not name.endswith("__main__"))


def is_public(module: ModuleType) -> bool:
    return not any(part.startswith("_") for part in module.__name__.split("."))


@pytest.mark.parametrize("name", module_names())
def test_all_lists_exactly_the_public_names(name: str) -> None:
    """Every public module has an ``__all__``; each name in one exists, once."""
    module = importlib.import_module(name)
    names: tuple[str, ...] | None = getattr(module, "__all__", None)
    assert names is not None or not is_public(module)
    assert [missing for missing in names or () if not hasattr(module, missing)] == []
    assert len(set(names or ())) == len(names or ())


@pytest.mark.parametrize("package", [operators, rx_backend])
def test_no_module_shares_its_name_with_an_export(package: ModuleType) -> None:
    """A name is a module or an export: ``import operators.stop_on`` must not give a function."""
    modules = {
        name.removeprefix(f"{package.__name__}.")
        for name in module_names()
        if name.startswith(f"{package.__name__}.")
    }
    assert {name.split(".")[0] for name in modules} & set(package.__all__) == set()


@pytest.mark.parametrize("name", authoring.__all__)
def test_every_public_name_has_help(name: str) -> None:
    """A class and a function by a docstring of their own; what can have none stands in the module's."""
    value = getattr(authoring, name)
    if (inspect.isclass(value) or inspect.isroutine(value)) and value.__name__ == name:
        assert value.__doc__
    else:
        assert f"- ``{name}" in (authoring.__doc__ or "")


def test_the_surface_of_operators_is_small() -> None:
    """The operators and their values; what is needed to write one is in ``operators.authoring``."""
    assert len(operators.__all__) <= 55
    assert set(operators.__all__) & set(authoring.__all__) == set()
    assert set(assembly.__all__) & {*operators.__all__, *authoring.__all__} == set()


@pytest.mark.parametrize("package", [operators, rx_backend])
def test_packages_list_what_they_import(package: ModuleType) -> None:
    """A package's ``__all__`` leaves out nothing public that its ``__init__`` imports from below."""
    prefix = f"{package.__name__}."
    imported = {
        name
        for name, value in vars(package).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and getattr(value, "__module__", "").startswith(prefix)
    }
    assert imported - set(package.__all__) == set()
