"""Loads the fixtures, but not in the process of ``pytest -n`` that only hands out tests: torch takes seconds."""

from __future__ import annotations

import gc
from importlib import import_module

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if getattr(config.option, "dist", "no") == "no":
        gc.disable()
        config.pluginmanager.register(import_module("tests.helpers.fixtures"))


def pytest_collection_finish() -> None:
    """Keep what the libraries have made out of the search for garbage, and search seldom: it took a tenth of all."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()
