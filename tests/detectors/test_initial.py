"""Detectors that start from a trained one: whose architecture they get, what they keep, and what is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from tests.helpers.fixtures import TINY_BACKBONE
from torch import nn

from dfmsd.detectors import (
    DetectorConfig,
    adopt_architecture,
    build_detector,
    load_detector,
    save_detector,
    torchvision_archs,
)
from dfmsd.detectors.base import REST
from dfmsd.errors import DfmsdError

TINY = DetectorConfig("retinanet", TINY_BACKBONE, fpn_channels=8, head_convs=1, anchor_scale=2.0)
LIGHT = "fasterrcnn_mobilenet_v3_large_320_fpn"
FASTER = "FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with a trained detector of cats and dogs."""
    save_detector(build_detector(TINY, ("cat", "dog")), tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["", "student.safetensors", "student.json"])
def test_a_detector_starts_from_the_files_of_another(run: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="dfmsd")
    student = build_detector(DetectorConfig(init=str(run / name)), ("dog", "fish"))
    trained = load_detector(run)
    assert student.training
    assert student.class_names == ("dog", "fish")
    assert torch.equal(
        student.model.head.regression_head.bbox_reg.weight, trained.model.head.regression_head.bbox_reg.weight
    )
    assert student.config == DetectorConfig(**{**vars(TINY), "init": str(run / name)})
    assert "retinanet/test_efficientnet: kept " in caplog.text
    assert "classes differ (2 -> 2)" in caplog.text
    assert ": kept dog, new fish" in caplog.text


def test_the_layers_to_freeze_are_those_of_the_new_config(run: Path) -> None:
    student = build_detector(DetectorConfig(init=str(run), frozen_stride=4), ("cat", "dog"))
    assert not all(parameter.requires_grad for parameter in student.parameters())


def test_a_detector_that_started_from_another_is_loaded_without_it(run: Path, tmp_path: Path) -> None:
    save_detector(build_detector(DetectorConfig(init=str(run)), ("fish",)), tmp_path / "later")
    run.rename(tmp_path / "gone")
    assert load_detector(tmp_path / "later").class_names == ("fish",)


def test_the_architecture_is_that_of_the_other_detector(run: Path) -> None:
    adopted = adopt_architecture(DetectorConfig(init=str(run)))
    assert (adopted.arch, adopted.backbone, adopted.anchor_scale) == ("retinanet", TINY_BACKBONE, 2.0)
    assert adopt_architecture(adopted) == adopted
    assert adopt_architecture(DetectorConfig(init=FASTER)).arch == "fasterrcnn_mobilenet_v3_large_320_fpn"
    with pytest.raises(DfmsdError, match="has arch retinanet, backbone test_efficientnet, the student arch gfl, back"):
        adopt_architecture(DetectorConfig("gfl", "resnet18", init=str(run)))


@pytest.mark.parametrize(
    ("stated", "differing"),
    [
        ({"arch": "fcos"}, "arch fcos"),
        ({"backbone": "mobilenetv3_small_050"}, "backbone mobilenetv3_small_050"),
    ],
)
def test_a_stated_default_is_not_replaced_by_the_other_detectors(
    run: Path, stated: dict[str, str], differing: str
) -> None:
    with pytest.raises(DfmsdError, match=rf"the student {differing}; weights fit their own architecture only"):
        adopt_architecture(DetectorConfig(**stated, init=str(run)))  # type: ignore[arg-type]
    left_out = DetectorConfig(arch="auto", backbone="auto", init=str(run))
    assert adopt_architecture(left_out) == adopt_architecture(DetectorConfig(init=str(run)))


def test_without_another_detector_the_architecture_has_defaults() -> None:
    assert (DetectorConfig().arch, DetectorConfig().backbone) == ("fcos", "mobilenetv3_small_050")
    assert DetectorConfig("auto", "auto") == DetectorConfig()
    assert DetectorConfig().changed() == []
    assert DetectorConfig("gfl", frozen_stride=4).changed() == ["arch", "frozen_stride"]


def test_of_other_libraries_the_reference_itself_is_the_architecture() -> None:
    assert adopt_architecture(DetectorConfig(init="hf:a/b")) == DetectorConfig("hf:a/b", pretrained=True)
    assert adopt_architecture(DetectorConfig(init="mmdet:a.py,b.pth")).arch == "mmdet:a.py,b.pth"


def write(text: str) -> Callable[[Path], None]:
    return lambda run: (run / "student.json").write_text(text) and None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda run: (run / "student.safetensors").unlink(),
            "has no student.safetensors: pass the folder of a finished",
        ),
        (lambda run: (run / "student.json").unlink(), "student.json is missing: it belongs next to the weights"),
        (write("{"), "student.json is not a checkpoint's description"),
        (write('{"format_version": 1, "detector": {"arch": "python:my.Net"}}'), "only its own program can build"),
        (write('{"format_version": 1}'), "student.json does not describe a detector"),
    ],
)
def test_a_damaged_run_is_refused(run: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(run)
    with pytest.raises(DfmsdError, match=message):
        adopt_architecture(DetectorConfig(init=str(run)))


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("runs/none", "no detector at 'runs/none'"),
        ("timm:resnet18", "timm:resnet18 has no detection head; name it as backbone"),
        ("Some_Weights.COCO_V1", "unknown torchvision detector weights"),
        ("ResNet18_Weights.IMAGENET1K_V1", "unknown torchvision detector weights"),
    ],
)
def test_what_is_no_detector_is_refused(init: str, message: str) -> None:
    with pytest.raises(DfmsdError, match=message):
        adopt_architecture(DetectorConfig(init=init))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"init": "runs/x", "pretrained": True}, "init and pretrained: runs/x brings the weights of its backbone too"),
        ({"init": ""}, "init must be a run folder, a file or the name of weights, got ''"),
        ({"pretrained": FASTER}, f"{FASTER} is the name of weights; for those of a whole detector set init to it"),
    ],
)
def test_contradictions_are_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(DfmsdError, match=message):
        DetectorConfig(**keys)  # type: ignore[arg-type]


COCO = [
    pytest.param(f"{enum.__name__}.{weights.name}", marks=() if arch == LIGHT else pytest.mark.slow)
    for arch in torchvision_archs()
    for enum in [torchvision.models.get_model_weights(arch)]
    for weights in enum  # without the alias DEFAULT
]


def cached_weights(name: str, cache: Path) -> Path:
    """Save random weights, with statistics of every normalization, where torch keeps those that it downloaded."""
    weights = torchvision.models.get_weight(name)
    arch = adopt_architecture(DetectorConfig(init=name)).arch
    classes = len(weights.meta["categories"])
    model = torchvision.models.get_model(arch, weights=None, weights_backbone=None, num_classes=classes)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.get_buffer("running_var"), 0.01, 1.0)
    file = cache / "hub" / "checkpoints" / weights.url.rpartition("/")[2]
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), file)
    return file


@pytest.mark.parametrize("name", COCO)
def test_torchvision_s_coco_weights_start_a_student_of_other_classes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached_weights(name, tmp_path)
    student, trained = build_detector(DetectorConfig(init=name), ("dog", "fish")), load_detector(name)
    images = torch.rand(1, 3, 320, 320)
    with torch.no_grad():
        ours, theirs = (detector.eval().features(images) for detector in (student, trained))
    for level, value in theirs.items():
        torch.testing.assert_close(ours[level], value, rtol=1e-3, atol=1e-4 * float(value.abs().max()))
    own, coco, mine, given = (
        student.class_rows(),
        trained.class_rows(),
        *(detector.model.state_dict() for detector in (student, trained)),
    )
    assert own
    assert coco
    for key, rows in own.items():
        assert torch.equal(mine[key][rows["dog"]], given[key][coco[key]["dog"]])
        assert rows.get(REST) is None or torch.equal(mine[key][rows[REST]], given[key][coco[key][REST]])


def test_damaged_coco_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached_weights(FASTER, tmp_path).write_bytes(b"no weights")
    with pytest.raises(DfmsdError, match="is not a checkpoint"):
        build_detector(DetectorConfig(init=FASTER), ("dog", "fish"))
