"""Whole runs with a custom module as student and a backbone as teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from tests.helpers.one_box import CLASSES, OneBox, decode, loss
from torch import nn

import dfmsd
from dfmsd.detectors import ModuleDetector
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.configfile import read_config
from dfmsd.engine.run import check
from dfmsd.errors import DfmsdError


def student(module: nn.Module, **functions: Any) -> ModuleDetector:
    pixels = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    return ModuleDetector(module, ("body.2", "body.3"), CLASSES, **pixels, loss=loss, **functions)


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "resnet.safetensors")
    return f"timm:test_resnet?weights={tmp_path}/resnet.safetensors"


def test_a_custom_student_learns_from_a_backbone_and_is_saved(
    tiny_root: Path, teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    module = OneBox()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    data = dfmsd.DataConfig(str(tiny_root), image_size=64, batch_size=4)
    options: dict[str, Any] = {"loss": {"name": "pkd"}, "epochs": 1}
    result = dfmsd.distill(student(module, decode=decode), teacher, data, tmp_path / "run", **options)
    assert isinstance(result.metrics["AP"], float)
    assert all(not torch.equal(p, before[name]) for name, p in module.named_parameters())
    assert "no head; pearson" in capsys.readouterr().err  # and it is not refused as a weak teacher

    fresh = OneBox()
    fresh.load_state_dict(load_file(tmp_path / "run" / "student.safetensors"))
    trained = module.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in fresh.state_dict().items())
    assert dfmsd.evaluate(student(fresh, decode=decode), dfmsd.CocoDataModule(data).val)["AP"] == result.metrics["AP"]
    with pytest.raises(DfmsdError, match=r"module\.load_state_dict"):
        dfmsd.load_detector(tmp_path / "run")

    config = read_config(DistillConfig, tmp_path / "run" / "config.yaml")
    assert config.student.arch == f"python:{OneBox.__module__}.OneBox"
    with pytest.raises(DfmsdError, match="which a config cannot build; pass it in Python"):
        check(config)
    again = dfmsd.distill(student(module, decode=decode), teacher, data, tmp_path / "run", **options, resume=True)
    assert again.metrics == result.metrics


def test_a_student_without_boxes_is_refused_before_its_first_step(
    tiny_root: Path, teacher: str, tmp_path: Path
) -> None:
    data = dfmsd.DataConfig(str(tiny_root), image_size=64, batch_size=4)
    with pytest.raises(DfmsdError, match=r"OneBox cannot detect: pass ModuleDetector"):
        dfmsd.distill(student(OneBox()), teacher, data, tmp_path / "run", loss={"name": "pkd"}, epochs=1)
    assert not (tmp_path / "run").exists()
