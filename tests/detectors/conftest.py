"""Tiny detectors of Hugging Face transformers and of MMDetection, each built once."""

from __future__ import annotations

import copy
import shutil
from functools import cache
from pathlib import Path

import pytest
from tests.helpers import tiny_mmdet
from tests.helpers.tiny_transformers import Built, Saved, save_model, student

from dfmsd.detectors import load_detector


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Folder of a random model of a type, as the library writes it: do not change it."""
    pytest.importorskip("transformers", reason="needs pip install 'dfmsd[transformers]'")
    root = tmp_path_factory.mktemp("hf")

    @cache
    def save(model_type: str) -> Path:
        save_model(model_type, root / model_type)
        return root / model_type

    return save


@pytest.fixture
def folder(saved: Saved, tmp_path: Path) -> Path:
    """A copy of an RT-DETR that a test may damage."""
    return Path(shutil.copytree(saved("rt_detr"), tmp_path / "model"))


@pytest.fixture(scope="session")
def loaded(saved: Saved) -> Built:
    """A teacher of a type, built once: do not change it."""
    return cache(lambda model_type: load_detector(f"hf:{saved(model_type)}"))


@pytest.fixture(scope="session")
def learning(saved: Saved) -> Built:
    """A student of a type, in train mode, that a test may change."""
    built = cache(lambda model_type: student(saved(model_type)))
    return lambda model_type: copy.deepcopy(built(model_type))


@pytest.fixture(scope="session")
def saved_mmdet(tmp_path_factory: pytest.TempPathFactory) -> tiny_mmdet.Saved:
    """Config and checkpoint of a tiny model of MMDetection: do not change them."""
    root = tmp_path_factory.mktemp("mmdet")
    return cache(lambda family: tiny_mmdet.save_model(family, root / family))
