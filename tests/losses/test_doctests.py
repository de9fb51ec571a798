"""Runs the examples in the docstrings of the losses."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

from dfmsd import losses

MODULES = [losses.__name__, *(module.name for module in pkgutil.walk_packages(losses.__path__, f"{losses.__name__}."))]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_every_pure_function_has_an_example_that_runs() -> None:
    finder = doctest.DocTestFinder()
    for name in losses.functional.__all__:
        function = getattr(losses.functional, name)
        if not isinstance(function, type) and name != "full_precision":
            assert any(found.examples for found in finder.find(function, name)), name
