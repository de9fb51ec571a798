"""The dry runs, for real: minutes each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dfmsd.comparison.config import CompareConfig
from dfmsd.data import CocoDataModule, DataConfig
from dfmsd.detectors import DetectorConfig
from dfmsd.engine.configfile import read_config
from dfmsd.errors import DfmsdError
from dfmsd.recipes.catalog import Recipe, find_recipe, list_recipes
from dfmsd.recipes.trial import try_recipe, without_weights, write_photos

GIB = 2**30
STUDENT = "{arch: fcos, backbone: mobilenetv3_small_050, fpn_channels: 16, head_convs: 1}"
SMALL = f"""# FCOS from FCOS
data: {{root: coco, image_size: 128, batch_size: 2, pad: batch, cache: off}}
student: {STUDENT}
pairs: {{coco: [FCOS_ResNet50_FPN_Weights.COCO_V1]}}
methods: [none, dfmsd]
epochs: 24
optim: {{warmup: 1}}
out: runs/small
"""


def test_photos_are_a_data_set_of_cocos_classes(tmp_path: Path) -> None:
    write_photos(tmp_path, 2)
    data = CocoDataModule(DataConfig(str(tmp_path), image_size=64, batch_size=2, pad="batch"))
    assert len(data.class_names) == 80
    assert data.class_names[0] == "person"
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (2, 3, 64, 64)  # 48 rounded up
    assert [len(target["boxes"]) for target in batch.targets] == [1, 1]


@pytest.mark.slow
def test_a_trial_measures_memory_and_predicts_hours(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    trials = try_recipe(Recipe(tmp_path / "small.yaml"))
    assert trials.keys() == {"none", "dfmsd"}
    weights = sum(p.numel() for p in _teacher().parameters()) * 4
    assert trials["dfmsd"].peak_bytes > trials["none"].peak_bytes + weights
    assert trials["dfmsd"].hours["T4"] > trials["none"].hours["T4"] > 0
    assert trials["none"].hours["T4"] > trials["none"].hours["H100 SXM"]


def _teacher() -> Any:
    from dfmsd.detectors import load_detector

    return load_detector("FCOS_ResNet50_FPN_Weights.COCO_V1", trained=False).model


def test_models_of_mmdetection_are_those_that_are_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "mmdet"
    (package / ".mim" / "configs" / "gfl").mkdir(parents=True)
    (package / "__init__.py").touch()
    for name in ("gfl_r50_fpn_1x_coco", "gfl_r101_fpn_ms-2x_coco"):
        (package / ".mim" / "configs" / "gfl" / f"{name}.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    config = read_config(CompareConfig, find_recipe("gfl_r50_from_gfl_r101").file)
    found = without_weights(config)
    folder = package / ".mim" / "configs" / "gfl"
    assert found.student == DetectorConfig(arch=f"mmdet:{folder / 'gfl_r50_fpn_1x_coco.py'}")
    assert found.pairs == {"coco": [f"mmdet:{folder / 'gfl_r101_fpn_ms-2x_coco.py'}"]}
    strange = replace(config, student=DetectorConfig(arch="mmdet:models/gfl_r18.py"))
    with pytest.raises(DfmsdError, match=r"this version of MMDetection has no config gfl_r18\.py"):
        without_weights(strange)


def test_a_dry_run_without_mmdetection_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfmsd.utils.extras._is_installed", lambda package: False)
    with pytest.raises(DfmsdError, match=r"needs mmdet: pip install 'dfmsd\[mmdet\]'"):
        try_recipe(find_recipe("gfl_r50_from_gfl_r101"))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [pytest.param(recipe, id=recipe.name) for recipe in list_recipes()])
def test_the_dry_run_of_a_recipe(recipe: Recipe, tmp_path: Path) -> None:
    if "mmdet:" in recipe.text:
        pytest.importorskip("mmdet", reason="needs pip install 'dfmsd[mmdet]'")
    else:  # in place of the hub, the library's own config of the family
        transformers = pytest.importorskip("transformers")
        transformers.DFineConfig().save_pretrained(tmp_path / "dfine")
        copy = tmp_path / f"{recipe.name}.yaml"
        copy.write_text(recipe.text.replace("ustc-community/dfine-large-coco", str(tmp_path / "dfine")))
        recipe = Recipe(copy)
    trials = try_recipe(recipe)
    assert trials.keys() == {"none", "dfmsd"}
    assert GIB / 2 < trials["none"].peak_bytes < trials["dfmsd"].peak_bytes < 64 * GIB
    assert 1 < trials["none"].hours["A100 SXM"] < trials["dfmsd"].hours["A100 SXM"] < 2000
