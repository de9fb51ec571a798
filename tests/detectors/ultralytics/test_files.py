"""Checkpoints, saved students and whole runs of Ultralytics' detectors, intact and damaged."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.helpers.tiny_ultralytics import CLASSES, FAMILIES, NEEDED, TARGETS, build_theirs, save_theirs

from dfmsd.detectors import DetectorConfig, build_detector, load_detector, save_detector
from dfmsd.distillation.stages import StageConfig
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.run import distill
from dfmsd.errors import DfmsdError

pytestmark = NEEDED
OTHERS = ("a", "b", "c")


def same_state(first: Any, second: Any) -> bool:
    state, other = first.state_dict(), second.state_dict()
    return state.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in state.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_is_read_with_its_weights_classes_and_size(tmp_path: Path, family: str) -> None:
    theirs = build_theirs(family)
    detector = load_detector(save_theirs(theirs, tmp_path / "best.pt"))
    assert (detector.class_names, detector.image_size) == (CLASSES, 96)
    assert not any(module.training for module in detector.modules())
    assert same_state(detector.model, theirs.half().float())


def test_a_delivered_checkpoint_has_its_weights_under_model(tmp_path: Path) -> None:
    theirs = build_theirs("yolo11n")
    reference = save_theirs(theirs, tmp_path / "best.pt", {"ema": None, "model": theirs, "train_args": {"imgsz": 100}})
    detector = load_detector(reference)
    assert detector.image_size is None  # 100 is not a multiple of 32
    assert same_state(detector.model, theirs)


def test_a_state_dict_is_read_with_the_yaml_of_the_model(tmp_path: Path) -> None:
    theirs = build_theirs("yolo11n")
    layout = tmp_path / "yolo11n.yaml"
    layout.write_text(yaml.safe_dump({**theirs.yaml, "names": list(CLASSES)}))
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    detector = load_detector(f"ultralytics:{layout},{tmp_path / 'weights.pt'}")
    assert detector.class_names == CLASSES
    assert same_state(detector.model, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_student_comes_back_without_the_library_s_files(tmp_path: Path, family: str) -> None:
    student = build_detector(DetectorConfig(f"ultralytics:{family}.yaml"), OTHERS)
    student(torch.rand(2, 3, 64, 64), [TARGETS[1], TARGETS[1]])  # moves the statistics of the batch normalization
    save_detector(student, tmp_path / "run")
    loaded = load_detector(tmp_path / "run")
    assert (loaded.levels, loaded.class_names, loaded.config) == (student.levels, OTHERS, student.config)
    assert same_state(loaded.model, student.model)


def test_a_student_keeps_all_but_the_rows_of_other_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = build_theirs("yolo26n")
    reference = save_theirs(theirs, tmp_path / "best.pt")
    with caplog.at_level(logging.INFO, "dfmsd"):
        student = build_detector(DetectorConfig(reference, pretrained=True), ("a", "disc", "b"))
    assert "classes differ (2 -> 3), so in model.23.cv3.0.2, model.23.cv3.1.2, model.23.cv3.2.2 and 3" in caplog.text
    assert "kept disc, new a, b" in caplog.text
    trained, mine = theirs.half().float().state_dict(), student.model.state_dict()
    changed = {key for key, value in mine.items() if not torch.equal(value, trained[key])}
    assert {key.rpartition(".")[0] for key in changed} == {
        f"model.23.{head}.{level}.2" for head in ("cv3", "one2one_cv3") for level in range(3)
    }
    for key in changed:
        assert torch.equal(mine[key][1], trained[key][1])
    same = build_detector(DetectorConfig(reference, pretrained=True), CLASSES)
    assert same_state(same.model, theirs)


def test_class_towers_of_another_width_are_new(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = build_theirs("yolo11n", classes=tuple(map(str, range(80))))  # 80 channels; with few classes 64
    with caplog.at_level(logging.INFO, "dfmsd"):
        student = build_detector(DetectorConfig(save_theirs(theirs, tmp_path / "best.pt"), pretrained=True), CLASSES)
    assert "classes differ (80 -> 2)" in caplog.text
    trained, mine = theirs.half().float().state_dict(), student.model.state_dict()
    assert all(torch.equal(value, trained[key]) for key, value in mine.items() if ".cv3." not in key)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("ultralytics:", "expected ultralytics:BEST.pt"),
        ("ultralytics:none.pt", "there is no file 'none.pt'; weights are not downloaded"),
        ("ultralytics:a.pt,b.pt", "expected ultralytics:BEST.pt"),
        ("ultralytics:yolo11n.yaml", "names no weights"),
        ("ultralytics:no-such-model.yaml,{here}/empty.pt", "no-such-model.yaml is neither"),
        ("ultralytics:{here}/empty.pt", "empty.pt cannot be read as a checkpoint"),
        ("ultralytics:{here}/state.pt", "state.pt holds no model of ultralytics"),
        ("ultralytics:yolo11n.yaml,{here}/state.pt", "yolo11n.yaml does not name the classes"),
    ],
)
def test_bad_references_are_refused_in_one_line(tmp_path: Path, reference: str, message: str) -> None:
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "state.pt")
    with pytest.raises(DfmsdError, match=message) as caught:
        load_detector(reference.format(here=tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("family", "kind"), [("yolo11n-seg", "SegmentationModel"), ("yolo11n-pose", "PoseModel")])
def test_models_for_other_tasks_are_refused_by_name(tmp_path: Path, family: str, kind: str) -> None:
    model = build_theirs(family, kind=kind)
    with pytest.raises(DfmsdError, match=f"holds a {kind} of ultralytics, not a detector of boxes"):
        load_detector(save_theirs(model, tmp_path / "best.pt"))
    with pytest.raises(DfmsdError, match="choose a model whose head is a Detect"):
        build_detector(DetectorConfig(f"ultralytics:{family}.yaml"), OTHERS)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    layout = tmp_path / "yolo11n.yaml"
    layout.write_text(yaml.safe_dump({**build_theirs("yolo11n").yaml, "names": list(CLASSES)}))
    torch.save(build_theirs("yolov8n").state_dict(), tmp_path / "weights.pt")
    with pytest.raises(DfmsdError, match=r"weights.pt does not fit the model"):
        build_detector(DetectorConfig(f"ultralytics:{layout},{tmp_path}/weights.pt", pretrained=True), CLASSES)


@pytest.mark.parametrize(
    ("pretrained", "message"), [(True, "names no weights"), ("weights.pt", "write ultralytics:MODEL.yaml,weights.pt")]
)
def test_initial_weights_that_are_not_there_are_refused(pretrained: bool | str, message: str) -> None:
    with pytest.raises(DfmsdError, match=f"pretrained: .*{message}"):
        build_detector(DetectorConfig("ultralytics:yolo11n.yaml", pretrained=pretrained), OTHERS)


def test_a_detector_of_the_library_teaches_and_is_taught(
    distill_config: Callable[..., DistillConfig], tiny_teachers: tuple[str, str], tmp_path: Path
) -> None:
    teacher = save_theirs(build_theirs("yolo11n"), tmp_path / "best.pt")
    taught = distill_config(
        tmp_path / "yolo", student=DetectorConfig("ultralytics:yolo26n.yaml"), stages=[StageConfig(1, tiny_teachers[0])]
    )
    for config in (distill_config(tmp_path / "run", stages=[StageConfig(1, teacher)]), taught):
        result = distill(config, allow_weak_teacher=True, check_images=1)
        assert result.metrics["AP"] is not None
        assert same_state(load_detector(result.run).model, result.student.model)


def test_a_checkpoint_without_the_prefix_is_recognized(tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes(b"")
    with pytest.raises(DfmsdError, match=r"for a model of Ultralytics, write ultralytics:.*best.pt"):
        load_detector(tmp_path / "best.pt")
