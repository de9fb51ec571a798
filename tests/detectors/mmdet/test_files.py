"""Configs, checkpoints, saved students and whole runs of MMDetection, intact and damaged."""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers.tiny_mmdet import CLASSES, FAMILIES, NEEDED, SIZES, TARGETS, Files, Saved, save_config, student

from dfmsd.detectors import Detector, DetectorConfig, build_detector, load_detector, save_detector
from dfmsd.detectors.mmdet.detector import MMDetector
from dfmsd.detectors.mmdet.files import read_checkpoint
from dfmsd.detectors.mmdet.settings import classes_of, parse, with_classes, write
from dfmsd.distillation.stages import StageConfig
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.run import check, distill
from dfmsd.errors import DfmsdError

pytestmark = NEEDED
Config = Callable[..., DistillConfig]


@pytest.fixture
def files(saved_mmdet: Saved, tmp_path: Path) -> Files:
    """A copy of a RetinaNet that a test may damage."""
    folder = Path(shutil.copytree(saved_mmdet("retinanet").config.parent, tmp_path / "model"))
    return Files(folder / "config.py", folder / "epoch_1.pth")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_student_comes_back_without_the_config(saved_mmdet: Saved, tmp_path: Path, family: str) -> None:
    theirs = saved_mmdet(family)
    folder = Path(shutil.copytree(theirs.config.parent, tmp_path / "model"))
    detector = student(Files(folder / "config.py", folder / "epoch_1.pth"), classes=("a", "b", "c"))
    detector(torch.rand(2, 3, 64, 64), TARGETS)  # moves the statistics of the batch normalization
    detector.eval()
    save_detector(detector, tmp_path / "run")
    shutil.rmtree(folder)
    loaded = load_detector(tmp_path / "run")
    assert isinstance(loaded, MMDetector)
    assert not loaded.training
    assert (loaded.levels, loaded.class_names) == (detector.levels, ("a", "b", "c"))
    assert (loaded.config, loaded.settings) == (detector.config, detector.settings)
    _detects_alike(loaded, detector)


def test_a_saved_student_keeps_its_normalization(files: Files, tmp_path: Path) -> None:
    pixels = {"mean": [10.0, 20.0, 30.0], "std": [2.0, 4.0, 5.0], "bgr_to_rgb": False}
    save_config("retinanet", files.config, {"model.data_preprocessor": {"type": "DetDataPreprocessor", **pixels}})
    save_detector(student(files), tmp_path / "run")
    red = load_detector(tmp_path / "run").normalize(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1))  # type: ignore[operator]
    assert red.flatten().tolist() == pytest.approx([-10 / 2, -20 / 4, 225 / 5], abs=1e-4)


def test_a_saved_student_has_no_mask_branch(saved_mmdet: Saved) -> None:
    theirs = saved_mmdet("cascade_mask_rcnn")
    assert any("mask_head" in key for key in torch.load(theirs.checkpoint, weights_only=True)["state_dict"])
    assert not any("mask" in key for key in student(theirs, pretrained=True).model.state_dict())


@pytest.mark.parametrize(
    "text",
    [
        "{'type': 'os.system', 'command': 'true'}",
        "{'type': 'RetinaNet', 'test_cfg': {'nms': {'type': '__import__(\"os\").abort()'}}}",
        "{'type': 'RetinaNet', 'neck': ({'type': 'mmengine.fileio.load'},)}",
        "__import__('os').abort()",
        "{'type': 'RetinaNet'",
    ],
)
def test_a_description_runs_no_code(files: Files, tmp_path: Path, text: str) -> None:
    save_detector(student(files), tmp_path / "run")
    path = tmp_path / "run" / "student.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "mmdet": text}))
    with pytest.raises(
        DfmsdError, match=r"^the description of mmdet:.*(not plain values|not registered in mmdet)"
    ) as error:
        load_detector(tmp_path / "run")
    assert "\n" not in str(error.value)


def test_settings_survive_writing() -> None:
    settings = {"type": "mmdet.SSDHead", "ratios": (0.15, 0.9), "strides": [8, 16], "neck": None, "on": True}
    assert parse(write(settings), "a test") == settings


def test_every_head_gets_the_number_of_classes() -> None:
    loss = {"type": "SeesawLoss", "num_classes": 80}
    regions = {"bbox_head": [{"loss_cls": loss}, {"num_classes": 80}]}
    found = with_classes({"bbox_head": {"type": "X"}, "rpn_head": {"num_classes": 1}, "roi_head": regions}, 7)
    assert found["bbox_head"] == {"type": "X", "num_classes": 7}
    assert found["rpn_head"]["num_classes"] == 1
    first, second = found["roi_head"]["bbox_head"]
    assert (first["num_classes"], first["loss_cls"]["num_classes"], second["num_classes"]) == (7, 7, 7)
    assert loss["num_classes"] == 80


@pytest.mark.parametrize("family", ["retinanet", "faster_rcnn"])
def test_only_layers_that_depend_on_the_classes_are_reset(
    saved_mmdet: Saved, family: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Other classes reset layers even if their number is the same."""
    theirs = load_detector(saved_mmdet(family).reference).model.state_dict()
    with caplog.at_level(logging.INFO, "dfmsd"):
        own = student(saved_mmdet(family), True, ("x", "y")).model.state_dict()
    changed = {key.rpartition(".")[0] for key, value in own.items() if not torch.equal(value, theirs[key])}
    layers = {"retinanet": {"bbox_head.retina_cls"}, "faster_rcnn": {"roi_head.bbox_head.fc_cls"}}[family]
    layers |= {"roi_head.bbox_head.fc_reg"} if family == "faster_rcnn" else set()
    assert changed == layers
    assert f"layers reset for 2 classes: {sorted(layers)[0]}" in caplog.text
    caplog.clear()
    same = student(saved_mmdet(family), True, ("Square", "disc")).model.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in same.items())
    assert not caplog.text
    more = student(saved_mmdet(family), True, ("x", "y", "z")).model.state_dict()
    assert {key.rpartition(".")[0] for key in more if more[key].shape != theirs[key].shape} == layers
    assert all(torch.equal(more[key], theirs[key]) for key in theirs if key.rpartition(".")[0] not in layers)


def test_a_backbone_can_start_from_a_file(files: Files, tmp_path: Path) -> None:
    theirs = load_detector(files.reference).model.backbone.state_dict()
    state = {key: torch.rand_like(value) for key, value in theirs.items() if value.ndim}  # torchvision's has no counts
    torch.save({**state, "fc.weight": torch.zeros(10, 64)}, tmp_path / "classifier.pth")
    torch.save({f"backbone.{key}": value for key, value in state.items()}, tmp_path / "detector.pth")
    for name in ("classifier.pth", "detector.pth"):
        own = student(files, str(tmp_path / name)).model.backbone
        assert all(torch.equal(value, own.state_dict()[key]) for key, value in state.items())
        assert not own.layer1[0].conv1.weight.requires_grad  # frozen, as the config says
    del state["layer3.0.conv1.weight"]
    torch.save(state, tmp_path / "damaged.pth")
    with pytest.raises(DfmsdError, match=r"damaged\.pth does not fit the model: missing .*layer3\.0\.conv1\.weight"):
        student(files, str(tmp_path / "damaged.pth"))
    with pytest.raises(DfmsdError, match="pretrained: weights file none does not exist"):
        student(files, "none")


def test_class_names_come_from_the_checkpoint_or_the_config(files: Files) -> None:
    state = torch.load(files.checkpoint, weights_only=True)["state_dict"]
    for meta in ({"CLASSES": ["a", "b"]}, {"dataset_meta": {"CLASSES": ("a", "b")}}):  # earlier versions
        torch.save({"state_dict": state, "meta": meta}, files.checkpoint)
        assert load_detector(files.reference).class_names == ("a", "b")
    torch.save({f"module.{key}": value for key, value in state.items()}, files.checkpoint)
    files.config.write_text(files.config.read_text() + "\nmetainfo = dict(classes=('c', 'd'))\n")
    assert load_detector(files.reference).class_names == ("c", "d")


def test_class_names_of_a_config_come_from_its_data_set() -> None:
    repeated = {"type": "RepeatDataset", "dataset": {"type": "mmdet.CocoDataset"}}
    assert classes_of({"train_dataloader": {"dataset": repeated}})[:2] == ("person", "bicycle")
    own = {"type": "CocoDataset", "metainfo": {"classes": ("crab",)}}
    assert classes_of({"train_dataloader": {"dataset": repeated}, "val_dataloader": {"dataset": own}}) == ("crab",)
    assert classes_of({"metainfo": {"classes": "crab"}}) == ("crab",)
    assert classes_of({"train_dataloader": {"dataset": {"type": "Mine"}}}) == ()


def test_missing_class_names_are_refused(files: Files) -> None:
    torch.save(torch.load(files.checkpoint, weights_only=True)["state_dict"], files.checkpoint)
    text = re.sub(r"(?m)^dataset_type.*\n", "", files.config.read_text()).replace("'CocoDataset'", "'Mine'")
    files.config.write_text(text)
    with pytest.raises(DfmsdError, match=r"neither the checkpoint nor the config names the classes: add metainfo"):
        load_detector(files.reference)


def test_a_checkpoint_with_code_is_refused_and_can_be_converted(files: Files) -> None:
    """A checkpoint of the library's own training, whose message hub contains functions."""
    from mmengine.logging import MessageHub

    hub = MessageHub("a test")
    hub.update_scalar("train/loss", 0.5)
    given = torch.load(files.checkpoint, weights_only=True)
    torch.save({**given, "message_hub": hub.state_dict()}, files.checkpoint)
    with pytest.raises(DfmsdError, match=r"cannot be read without running code in it \(.*where mmengine is") as error:
        load_detector(files.reference)
    message = str(error.value)
    assert "\n" not in message
    exec(message.rpartition("python -c ")[2].strip('"'), {})
    converted = files.checkpoint.with_name("epoch_1-weights.pth")
    assert load_detector(f"mmdet:{files.config},{converted}").class_names == CLASSES


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": [1]}, {"a": 1}])
def test_a_file_without_weights_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(DfmsdError, match=r"x\.pth is not a checkpoint of mmdet: expected its weights by name"):
        read_checkpoint(tmp_path / "x.pth")


def test_random_weights_need_no_checkpoint(files: Files) -> None:
    text = f"mmdet:{files.config}"
    assert load_detector(text, trained=False).levels == load_detector(files.reference).levels
    with pytest.raises(DfmsdError, match=r"names no weights: write mmdet:.*config\.py,CHECKPOINT\.pth$"):
        load_detector(text)
    assert build_detector(DetectorConfig(text), CLASSES).training
    with pytest.raises(DfmsdError, match=r"pretrained: mmdet:.* names no weights"):
        build_detector(DetectorConfig(text, pretrained=True), CLASSES)


def test_another_models_checkpoint_is_refused(saved_mmdet: Saved) -> None:
    config, checkpoint = saved_mmdet("retinanet").config, saved_mmdet("faster_rcnn").checkpoint
    with pytest.raises(DfmsdError, match=r"faster_rcnn.*does not fit the model: missing .*bbox_head"):
        load_detector(f"mmdet:{config},{checkpoint}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = dict(type='RetinaNet')", "the config has no model with a backbone"),
        ("x = 1", "the config has no model with a backbone"),
        ("raise ValueError('no way')", r"config\.py is not a config of mmdet \(no way\)"),
        ("model = dict(type='Mine', backbone=dict(type='ResNet', depth=18))", r"cannot build the model \(.*Mine"),
        ("model = dict(backbone=dict(type='ResNet', depth=float('inf')))", "not plain values that a file can hold"),
    ],
)
def test_other_configs_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.py").write_text(text)
    with pytest.raises(DfmsdError, match=message) as error:
        build_detector(DetectorConfig(f"mmdet:{tmp_path / 'config.py'}"), CLASSES)
    assert "\n" not in str(error.value)


def test_missing_files_are_named(files: Files) -> None:
    for text in ("mmdet:", "mmdet:faster_rcnn", f"mmdet:{files.config},none.pth"):
        with pytest.raises(DfmsdError, match=r"there is no file '.*'; expected mmdet:CONFIG\.py,CHECKPOINT\.pth"):
            load_detector(text)


def test_configs_may_contain_classes(tmp_path: Path) -> None:
    """Configs may import the classes that they build."""
    save_config("retinanet", tmp_path / "old.py")
    text = (tmp_path / "old.py").read_text().replace("type='RetinaNet'", "type=RetinaNet")
    (tmp_path / "new.py").write_text(f"from mmdet.models import RetinaNet\n{text}")
    detector = build_detector(DetectorConfig(f"mmdet:{tmp_path / 'new.py'}"), CLASSES)
    assert detector.settings["type"] == "RetinaNet"  # type: ignore[index]
    save_detector(detector, tmp_path / "run")
    _detects_alike(load_detector(tmp_path / "run"), detector.eval())


def test_a_missing_library_is_named(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mmdet.models", "mmcv"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(DfmsdError, match=r"needs mmdet \(.*: pip install 'dfmsd\[mmdet\]'$"):
                load_detector(files.reference)


@pytest.mark.parametrize("family", ["gfl", "faster_rcnn"])
def test_it_teaches_a_torchvision_student(
    saved_mmdet: Saved, distill_config: Config, tmp_path: Path, family: str
) -> None:
    stages = [StageConfig(epochs=1, teacher=saved_mmdet(family).reference)]
    distill(distill_config(tmp_path / "run", stages=stages), allow_weak_teacher=True, check_images=1)
    assert "mask/p4" in (tmp_path / "run" / "log.csv").read_text().splitlines()[0]


@pytest.mark.parametrize("family", ["fcos", "cascade_mask_rcnn"])
def test_it_is_trained_and_saved(
    saved_mmdet: Saved, distill_config: Config, tiny_teachers: tuple[str, str], tmp_path: Path, family: str
) -> None:
    config = distill_config(
        tmp_path / "run",
        student=DetectorConfig(saved_mmdet(family).reference, pretrained=True),
        stages=[StageConfig(epochs=1, teacher=tiny_teachers[0])],
    )
    result = distill(config, allow_weak_teacher=True, check_images=1)
    header = (tmp_path / "run" / "log.csv").read_text().splitlines()[0]
    names = {"fcos": ("task/loss_centerness",), "cascade_mask_rcnn": ("task/loss_rpn_cls", "task/s2.loss_bbox")}
    assert all(name in header for name in (*names[family], "mask/p5"))
    loaded = load_detector(tmp_path / "run")
    loaded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # other layouts take other kernels
    assert loaded.class_names == CLASSES
    _detects_alike(loaded, result.student)


def test_a_run_is_checked_before_it_starts(saved_mmdet: Saved, distill_config: Config, tmp_path: Path) -> None:
    reference = saved_mmdet("atss").reference
    config = distill_config(
        tmp_path / "run", student=DetectorConfig(reference), stages=[StageConfig(epochs=1, teacher=reference)]
    )
    found = check(config, allow_weak_teacher=True, check_images=1)
    assert found.levels["student"] == "p3 /8 x64, p4 /16 x64, p5 /32 x64, p6 /64 x64, p7 /128 x64"
    assert all(term.gradient > 0 for term in found.terms)


def _detects_alike(one: Detector, other: Detector) -> None:
    images = torch.rand(2, 3, 96, 64)
    for own, theirs in zip(one.detect(images, SIZES), other.detect(images, SIZES), strict=True):
        assert len(own["scores"]) > 0
        assert all(torch.equal(own[key], theirs[key]) for key in ("boxes", "scores", "labels"))  # type: ignore[literal-required]
