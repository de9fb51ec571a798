"""torchvision's detectors with weights of the user's own."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from dfmsd.detectors import DetectorConfig, build_detector, load_detector, torchvision_archs
from dfmsd.detectors.statedict import read_state_dict
from dfmsd.detectors.torchvision.files import count_outputs
from dfmsd.errors import DfmsdError

RCNN = "fasterrcnn_mobilenet_v3_large_320_fpn"


def build(arch: str, outputs: int) -> nn.Module:
    model: nn.Module = torchvision.models.get_model(arch, weights=None, weights_backbone=None, num_classes=outputs)
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a Faster R-CNN for background, cat and dog."""
    folder = tmp_path_factory.mktemp("torchvision")
    torch.manual_seed(0)
    torch.save(build(RCNN, 3).state_dict(), folder / "rcnn.pth")
    return folder


def reference(folder: Path, classes: str, weights: str = "rcnn.pth") -> str:
    (folder / "classes.txt").write_text(classes, encoding="utf-8")
    return f"torchvision:{RCNN},{folder / weights},{folder / 'classes.txt'}"


def test_a_file_finds_what_its_model_finds(folder: Path) -> None:
    torch.manual_seed(0)
    model: Any = build(RCNN, 3)
    detector = load_detector(reference(folder, "cat\n dog\n\n"))
    assert detector.class_names == ("cat", "dog")
    assert not detector.training
    assert detector.image_size == 416  # of 320 x 427 pixels, the builder's default
    image = torch.rand(1, 3, 128, 128)
    model.transform.min_size, model.transform.max_size = (128,), 128  # as the batch is, without resizing
    (found,) = detector.detect(image, [(128, 128)])
    with torch.no_grad():
        (expected,) = model([image[0]])
    assert len(expected["scores"]) > 0
    torch.testing.assert_close(found["boxes"], expected["boxes"])
    assert found["labels"].tolist() == [label - 1 for label in expected["labels"].tolist()]


@pytest.mark.parametrize("first", ["__background__", "background", "_Background_"])
def test_the_background_may_be_listed(folder: Path, first: str) -> None:
    detector = load_detector(reference(folder, f"{first}\ncat\ndog"))
    assert (detector.class_names, detector.label_ids.tolist()) == (("cat", "dog"), [1, 2])


def test_labels_without_objects_are_left_out(tmp_path: Path) -> None:
    torch.save(build(RCNN, 4).state_dict(), tmp_path / "rcnn.pth")
    detector = load_detector(reference(tmp_path, "cat\nN/A\ndog"))
    assert (detector.class_names, detector.label_ids.tolist()) == (("cat", "dog"), [1, 3])


def test_an_fcos_trained_with_a_background_class(tmp_path: Path) -> None:
    torch.save(build("fcos_resnet50_fpn", 3).state_dict(), tmp_path / "fcos.pth")
    (tmp_path / "classes.txt").write_text("__background__\ncat\ndog\n")
    detector = load_detector(f"torchvision:fcos_resnet50_fpn,{tmp_path / 'fcos.pth'},{tmp_path / 'classes.txt'}")
    assert (detector.class_names, detector.label_ids.tolist()) == (("cat", "dog"), [1, 2])


def test_checkpoints_of_trainings(folder: Path) -> None:
    state = torch.load(folder / "rcnn.pth", weights_only=True)
    saved = {
        "torchvision.pth": {"model": state, "args": Namespace(lr=0.02, data_path="coco"), "epoch": 1},  # its own script
        "lightning.ckpt": {"state_dict": {f"model.{key}": value for key, value in state.items()}, "epoch": 1},
        "parallel.pt": {f"module.{key}": value for key, value in state.items()},
        "average.pth": {"n_averaged": torch.tensor(3), **{f"module.{key}": value for key, value in state.items()}},
        "own.ckpt": {"state_dict": {"weights": torch.ones(2), **{f"net.rcnn.{key}": v for key, v in state.items()}}},
        "metric.pth": {"model": state, "best": np.float64(0.5), "last": np.float32(0.4), "step": np.int64(3)},
    }
    for name, content in saved.items():
        torch.save(content, folder / name)
        detector = load_detector(reference(folder, "cat\ndog", name))
        torch.testing.assert_close(detector.model.state_dict(), state)


def test_a_model_that_is_there_twice_is_not_guessed(folder: Path) -> None:
    state = torch.load(folder / "rcnn.pth", weights_only=True)
    both = {f"{part}.{key}": value for part in ("model", "ema.module") for key, value in state.items()}
    torch.save(both, folder / "both.pth")
    with pytest.raises(DfmsdError, match=r"holds the model 2 times, under 'ema\.module\.', 'model\.'; save one of"):
        load_detector(reference(folder, "cat\ndog", "both.pth"))


def test_a_student_starts_from_a_file(folder: Path) -> None:
    text = reference(folder, "cat\ndog")
    trained, student = load_detector(text), build_detector(DetectorConfig(init=text), ["dog", "bird"])
    assert student.config is not None
    assert (student.config.arch, student.config.init) == (RCNN, text)
    weights: Any = [one.model.roi_heads.box_predictor.cls_score.weight for one in (trained, student)]
    torch.testing.assert_close(weights[1][:2], weights[0][[0, 2]])  # background and dog
    assert not torch.equal(weights[1][2], weights[0][1])


def test_random_weights_on_request(folder: Path) -> None:
    text = reference(folder, "cat\ndog")
    key = "roi_heads.box_head.fc6.weight"
    one, other = load_detector(text).model.state_dict(), load_detector(text, trained=False).model.state_dict()
    assert not torch.equal(one[key], other[key])


@pytest.mark.parametrize("arch", torchvision_archs())
@pytest.mark.parametrize("outputs", [2, 5])
def test_the_number_of_labels_is_read_off_the_weights(arch: str, outputs: int) -> None:
    with torch.device("meta"):
        state = build(arch, outputs).state_dict()
    assert count_outputs(arch, state, Path("weights.pth")) == outputs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("torchvision:", "expected torchvision:BUILDER,WEIGHTS.pth,CLASSES.txt"),
        (f"torchvision:{RCNN}", "expected torchvision:BUILDER,WEIGHTS.pth,CLASSES.txt"),
        ("torchvision:resnet50,{weights}", "'resnet50' is not one of torchvision's builders, fasterrcnn_"),
        ("torchvision:fcos_resnet50,{weights}", r"'fcos_resnet50' is not .*; did you mean fcos_resnet50_fpn\?"),
        ("torchvision:keypointrcnn_resnet50_fpn,{weights}", "keypointrcnn_resnet50_fpn is not supported"),
        (f"torchvision:{RCNN},nowhere.pth", "there is no file 'nowhere.pth'"),
        (f"torchvision:{RCNN},{{weights}},nowhere.txt", "there is no file 'nowhere.txt'"),
        (f"torchvision:{RCNN},{{weights}}", "3 labels, the background and 2 classes, and do not name them; write "),
        (
            "torchvision:fcos_resnet50_fpn,{weights},{one}",
            "has no backbone.body.conv1.weight, a weight of fcos_resnet50_fpn; its keys are 330 ",
        ),
        ("torchvision:fasterrcnn_resnet50_fpn,{weights},{two}", "a weight of fasterrcnn_resnet50_fpn; its keys are"),
        (f"torchvision:{RCNN},{{weights}},{{one}}", "has 1 name.s., but .* the background and 2 classes"),
        (
            f"torchvision:{RCNN},{{weights}},{{twice}}",
            "twice.txt: class name 'cat' occurs more than once; make it unique",
        ),
        (f"torchvision:{RCNN},{{weights}},{{none}}", "names no class, only labels without objects"),
        (
            f"torchvision:{RCNN},{{weights}},{{latin}}",
            "latin.txt: line 1 is not UTF-8 but perhaps Latin-1 text; save it as UTF-8",
        ),
    ],
)
def test_errors_say_what_to_write(folder: Path, text: str, message: str) -> None:
    lists = {"one": "cat", "two": "cat\ndog", "twice": "cat\ncat", "none": "N/A\nN/A", "latin": "Plättchen\ndog"}
    for name, classes in lists.items():
        (folder / f"{name}.txt").write_text(classes, encoding="latin-1")
    paths = {"weights": folder / "rcnn.pth", **{name: folder / f"{name}.txt" for name in lists}}
    with pytest.raises(DfmsdError, match=message):
        load_detector(text.format(**paths))


@pytest.mark.parametrize("name", ["best.pth", "best.ckpt", "best.pt"])
def test_a_foreign_checkpoint_is_told_how_it_is_named(tmp_path: Path, name: str) -> None:
    torch.save({}, tmp_path / name)
    with pytest.raises(DfmsdError, match=rf"for one of torchvision, write torchvision:BUILDER,.*{name},CLASSES\.txt"):
        load_detector(tmp_path / name)


def test_a_checkpoint_with_code_is_not_loaded(tmp_path: Path) -> None:
    torch.save(build(RCNN, 2), tmp_path / "whole.pth")
    with pytest.raises(
        DfmsdError, match=r"read safely \(it holds a torchvision\.models\.detection\.faster_rcnn\.Faster"
    ):
        read_state_dict(tmp_path / "whole.pth")
