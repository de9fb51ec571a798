"""Saving and loading: equal detections afterwards, and errors with a remedy."""

from __future__ import annotations

import json
import urllib.error
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from tests.helpers.fixtures import TINY_BACKBONE
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from dfmsd.detectors import DETECTORS, Detector, DetectorConfig, build_detector, load_detector, save_detector
from dfmsd.detectors.registry import build_model
from dfmsd.errors import DfmsdError

SMALL = DetectorConfig(backbone=TINY_BACKBONE, fpn_channels=16, head_convs=1)
NAMES = ["a", "b"]
COCO_FASTER = "FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1"


def _trained(config: DetectorConfig) -> Detector:
    """A detector whose buffers and scores differ from a newly built one."""
    detector = build_detector(config, NAMES)
    for name, parameter in detector.named_parameters():
        if "cls_logits" in name or "cls_score" in name:
            nn.init.normal_(parameter, std=0.5)
    detector.features(torch.rand(4, 3, 64, 64))
    return detector.eval()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Folder with a saved detector."""
    save_detector(build_detector(SMALL, NAMES), tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("arch", list(DETECTORS))
def test_the_same_detections_come_back(arch: str, tmp_path: Path) -> None:
    detector = _trained(replace(SMALL, arch=arch)).to(memory_format=torch.channels_last)
    file = save_detector(detector, tmp_path / "run")
    images = torch.rand(2, 3, 64, 64)
    expected = detector.detect(images, [(64, 64), (40, 64)])
    for reference in (tmp_path / "run", str(file), file.with_suffix(".json")):
        loaded = load_detector(reference)
        assert not loaded.training
        loaded.to(memory_format=torch.channels_last)  # other layouts take other kernels
        assert (loaded.class_names, loaded.levels) == (detector.class_names, detector.levels)
        assert loaded.config == detector.config
        for got, want in zip(loaded.detect(images, [(64, 64), (40, 64)]), expected, strict=True):
            assert len(want["scores"]) > 0
            assert all(torch.equal(got[key], want[key]) for key in ("boxes", "scores", "labels"))


def test_the_file_is_torchvisions_own_state_dict(tmp_path: Path) -> None:
    detector = _trained(SMALL)
    file = save_detector(detector, tmp_path / "model.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    plain = build_model(SMALL, len(NAMES))
    plain.load_state_dict(load_file(file), strict=True)
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in detector.model.state_dict().items())


def test_the_description_contains_everything_except_the_weights(run: Path) -> None:
    description = json.loads((run / "student.json").read_text(encoding="utf-8"))
    assert description["format_version"] == 1
    assert description["class_names"] == NAMES
    assert description["detector"]["backbone"] == TINY_BACKBONE
    assert description["image_mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert description["image_std"] == pytest.approx([0.229, 0.224, 0.225])
    assert description["levels"][0] == {"name": "p3", "channels": 16, "stride": 8, "sizes": [0.0, 64.0]}
    assert description["levels"][-1]["sizes"] == [512.0, None]  # JSON has no infinity


def test_normalization_is_read_from_the_file(run: Path) -> None:
    description = json.loads((run / "student.json").read_text(encoding="utf-8"))
    (run / "student.json").write_text(json.dumps({**description, "image_mean": [0.1, 0.2, 0.3]}), encoding="utf-8")
    assert load_detector(run).mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_a_description_of_levels_without_sizes_loads(run: Path) -> None:
    description = json.loads((run / "student.json").read_text(encoding="utf-8"))
    expected = load_detector(run).levels
    for level in description["levels"]:
        del level["sizes"]
    (run / "student.json").write_text(json.dumps(description), encoding="utf-8")
    assert load_detector(run).levels == expected
    description["levels"][1]["stride"] = 32
    (run / "student.json").write_text(json.dumps(description), encoding="utf-8")
    with pytest.raises(DfmsdError, match=r"lists levels .*\('p4', 16, 32\).* builds .*\('p4', 16, 16\)"):
        load_detector(run)


def test_loading_downloads_no_imagenet_weights(run: Path) -> None:
    description = json.loads((run / "student.json").read_text(encoding="utf-8"))
    description["detector"]["pretrained"] = "gone.pth"
    (run / "student.json").write_text(json.dumps(description), encoding="utf-8")
    config = load_detector(run).config
    assert config is not None
    assert config.pretrained == "gone.pth"


def test_a_failed_write_leaves_the_old_files(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir()}

    def full_disk(state: object, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_detector(build_detector(SMALL, NAMES), run)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def _drop_weight(run: Path) -> None:
    state = load_file(run / "student.safetensors")
    del state["head.classification_head.cls_logits.bias"]
    save_file(state, run / "student.safetensors")


def _edit(run: Path, **changes: object) -> None:
    description = json.loads((run / "student.json").read_text(encoding="utf-8"))
    (run / "student.json").write_text(json.dumps({**description, **changes}), encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("one/student.safetensors", "; it holds {folder}/one$"),
        ("cells.safetensors", r"; it holds {folder}/cells\.safetensors$"),
        ("config.json", "; for the model of Hugging Face transformers in it, write hf:{folder}$"),
        ("weights/best.pt", r"; for the model of Ultralytics in it, write ultralytics:{folder}/weights/best\.pt$"),
        ("photo.jpg", ": pass the folder of a finished run$"),
    ],
)
def test_a_folder_that_holds_other_detectors_says_so(tmp_path: Path, file: str, message: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    with pytest.raises(DfmsdError, match=message.format(folder=tmp_path)):
        load_detector(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "student.safetensors").write_text("hello"), r"student\.safetensors is not a checkpoint"),
        (lambda run: (run / "student.safetensors").unlink(), r"has no student\.safetensors"),
        (lambda run: (run / "student.json").unlink(), r"student\.json is missing: it belongs next to the weights"),
        (lambda run: (run / "student.json").write_text("hello"), r"student\.json is not a checkpoint's description"),
        (lambda run: (run / "student.json").write_text("[]"), "format_version None"),
        (lambda run: _edit(run, format_version=99), "format_version 99, this dfmsd reads 1"),
        (lambda run: _edit(run, detector={"wings": 2}), r"does not describe a detector .*wings"),
        (lambda run: _edit(run, class_names=["only"]), r"does not fit the model: size mismatch for head\.class"),
        (lambda run: _edit(run, image_size="96"), r"student\.json: image_size must be a multiple of 32, .* got '96'"),
        (lambda run: _edit(run, levels=[]), r"lists levels \[\]"),
        (_drop_weight, r"does not fit the model: missing 1 .*cls_logits\.bias"),
    ],
)
def test_damaged_runs_are_refused_in_one_line(run: Path, damage: object, message: str) -> None:
    damage(run)  # type: ignore[operator]
    with pytest.raises(DfmsdError, match=message) as error:
        load_detector(run)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nowhere/run", r"no detector at 'nowhere/run': expected a run folder, a student file"),
        ("mmdet:faster_rcnn", r"there is no file 'faster_rcnn'; expected mmdet:CONFIG\.py,CHECKPOINT\.pth"),
        ("python:teacher1", "'python:teacher1' stands for a detector passed from Python, which no file holds"),
        ("ftp:model", r"unknown prefix 'ftp:'"),
        ("torchvison:fcos_resnet50_fpn,a.pth", r"unknown prefix 'torchvison:' in .*: did you mean torchvision:\?"),
        ("FCOS_ResNet5_FPN_Weights.COCO_V1", r"unknown torchvision .*mean FCOS_ResNet50_FPN_Weights\.COCO_V1\?"),
        ("Any_Weights.COCO", r"unknown torchvision detector weights 'Any_Weights\.COCO': expected one of FasterRCNN"),
        ("fcos_resnet50_fpn_weight.coco_v1", r"no detector at .* did you mean FCOS_ResNet50_FPN_Weights\.COCO_V1\?"),
        ("KeypointRCNN_ResNet50_FPN_Weights.COCO_V1", r"COCO_V1 is not supported: Keypoint R-CNN detects persons"),
    ],
)
def test_wrong_references_are_refused(reference: str, message: str) -> None:
    with pytest.raises(DfmsdError, match=message):
        load_detector(reference)


def test_other_files_are_not_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(b"anything")
    with pytest.raises(DfmsdError, match=r"model\.pth is not a checkpoint"):
        load_detector(tmp_path / "model.pth")


def test_a_detector_without_a_configuration_is_not_saved(tmp_path: Path) -> None:
    detector = build_detector(SMALL, NAMES)
    detector.config = None
    with pytest.raises(DfmsdError, match="was not built from a configuration"):
        save_detector(detector, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unavailable_torchvision_weights_name_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_args: object, **_options: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(DfmsdError) as error:
        load_detector("FCOS_ResNet50_FPN_Weights.COCO_V1")
    folder = tmp_path / "hub" / "checkpoints"
    assert f"put the file fcos_resnet50_fpn_coco-99b0c9b7.pth into {folder}" in str(error.value)


def test_torchvision_weights_load_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    file = folder / "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth"
    file.write_bytes(b"damaged")
    with pytest.raises(DfmsdError, match=r"907ea3f9\.pth is not a checkpoint .*delete it"):
        load_detector(COCO_FASTER)
    saved = torchvision.models.get_model(
        "fasterrcnn_mobilenet_v3_large_320_fpn", weights=None, weights_backbone=None
    ).state_dict()
    torch.save(saved, file)
    detector = load_detector(COCO_FASTER)
    assert len(detector.class_names) == 80
    assert (detector.class_names[0], detector.class_names[-1]) == ("person", "toothbrush")
    assert detector.label_ids[[0, 11, 79]].tolist() == [1, 13, 90]  # COCO's own ids have gaps
    assert all(torch.equal(value, saved[key]) for key, value in detector.model.state_dict().items())
    assert any(isinstance(module, FrozenBatchNorm2d) for module in detector.modules())
    # This backbone ends with two maps of one stride.
    assert [(level.name, level.stride) for level in detector.levels] == [("p5", 32), ("p5_2", 32), ("p6", 64)]


def test_files_copied_without_their_run_keep_the_image_size(run: Path, tmp_path: Path) -> None:
    detector = build_detector(SMALL, NAMES)
    detector.image_size = 96
    save_detector(detector, tmp_path / "copied" / "cells.safetensors")
    assert load_detector(tmp_path / "copied" / "cells.safetensors").choose_size() == 96
    assert load_detector(run).image_size is None  # neither its description nor a config states one


def test_older_descriptions_take_the_image_size_of_the_config(run: Path) -> None:
    (run / "config.yaml").write_text("data: {image_size: 160}")
    assert load_detector(run).choose_size() == 160
    assert load_detector(run / "student.safetensors").choose_size() == 160


def test_an_unknown_image_size_is_assumed_and_said_once(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    detector = load_detector(run)
    for _ in range(2):
        assert detector.choose_size(None, "--image-size") == 256
    assert [record.getMessage() for record in caplog.records] == [
        "the image size that the model was trained at is unknown: assuming 256 pixels; --image-size states another"
    ]
    assert detector.choose_size(96) == 96
    assert load_detector(save_detector(detector, run)).image_size is None  # the assumption is not passed on
