"""State-dict files: what training loops wrap them in, values that are not finite, and short messages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from tests.helpers.fixtures import TINY_BACKBONE
from torch import Tensor, nn

from dfmsd.detectors import DetectorConfig, build_detector, load_detector, save_detector
from dfmsd.detectors.build.backbones import build_backbone
from dfmsd.detectors.statedict import check_finite, load_strictly, read_state_dict, without_wrappers
from dfmsd.engine.build import assemble_task, build_student
from dfmsd.errors import DfmsdError

CLASSES = ["square", "disc"]
BIAS = "head.classification_head.cls_logits.bias"


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """The weights file of a detector."""
    config = DetectorConfig(backbone=TINY_BACKBONE, fpn_channels=16, head_convs=1)
    return save_detector(build_detector(config, CLASSES), tmp_path / "run")


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "model.module."])
def test_a_prefix_of_all_keys_is_removed(student: Path, prefix: str) -> None:
    expected = load_detector(student).model.state_dict()
    save_file(prefixed(prefix, load_file(student)), student)
    loaded = load_detector(student).model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.items())


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_the_weights_of_a_trainings_checkpoint_are_found(key: str, prefix: str, tmp_path: Path) -> None:
    classifier = timm.create_model(TINY_BACKBONE)
    torch.save({key: prefixed(prefix, classifier.state_dict()), "epoch": 3}, tmp_path / "training.pth")
    body = build_backbone(TINY_BACKBONE, (8, 16), pretrained=str(tmp_path / "training.pth")).body
    assert torch.equal(body.state_dict()["conv_stem.weight"], classifier.state_dict()["conv_stem.weight"])


def test_a_models_own_prefix_is_kept() -> None:
    model = nn.ModuleDict({"model": nn.Linear(2, 2)})
    load_strictly(model, prefixed("module.", model.state_dict()), "file")
    state = {"model.weight": torch.zeros(1)}
    assert without_wrappers(state, {"model.weight"}.__contains__) == state
    assert list(without_wrappers({"a._orig_mod.b": torch.zeros(1)}, {"a.b"}.__contains__)) == ["a.b"]


def test_of_many_wrong_keys_the_first_three_are_named() -> None:
    model = nn.ModuleDict({name: nn.Linear(2, 2) for name in "abcd"})
    with pytest.raises(DfmsdError) as error:
        load_strictly(model, {f"other.{number}": torch.zeros(1) for number in range(9)}, "file.pth")
    assert str(error.value) == (
        "file.pth does not fit the model: missing 8 (a.weight, a.bias, b.weight, ...); unexpected 9 (other.0, other.1,"
        " other.2, ...); pass the weights of exactly this model"
    )
    with pytest.raises(
        DfmsdError, match=r"file does not fit the model: size mismatch for a\.weight: .* \(and 7 more\)"
    ):
        load_strictly(model, {key: torch.zeros(7) for key in model.state_dict()}, "file")


def test_a_file_without_weights_names_what_it_holds(tmp_path: Path) -> None:
    torch.save({"epoch": 1, "weights": {"a": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(DfmsdError, match=r"is not a checkpoint: expected .*; its keys are 2 \(epoch, weights\)$"):
        read_state_dict(tmp_path / "other.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_the_first_key(student: Path, value: float) -> None:
    state = load_file(student)
    state[BIAS][0] = value
    save_file(state, student)
    with pytest.raises(DfmsdError, match=rf"NaN or infinite in 1 of \d+ tensors, the first is {BIAS}: its training"):
        load_detector(student)


def test_a_backbones_file_is_checked_too(tmp_path: Path) -> None:
    state = timm.create_model(TINY_BACKBONE).state_dict()
    state["bn1.running_var"][0] = float("nan")
    save_file(state, tmp_path / "backbone.safetensors")
    file = str(tmp_path / "backbone.safetensors")
    for load in (lambda: build_backbone(TINY_BACKBONE, (8,), pretrained=file), lambda: load_detector(timm_of(file))):
        with pytest.raises(DfmsdError, match=r"NaN or infinite in 1 of \d+ tensors, the first is bn1\.running_var"):
            load()


def timm_of(file: str) -> str:
    return f"timm:{TINY_BACKBONE}?weights={file}"


def test_a_mask_of_attention_may_hold_its_infinity() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    check_finite(model, "model")
    model.mask[0] = float("nan")
    with pytest.raises(DfmsdError, match="the first is mask"):
        check_finite(model, "model")


def test_a_teacher_passed_from_python_is_checked(
    distill_config: Callable[..., Any], tiny_teachers: tuple[str, str], tmp_path: Path
) -> None:
    config = distill_config(tmp_path / "run")
    teachers = {name: load_detector(name) for name in tiny_teachers}
    next(teachers[tiny_teachers[0]].parameters()).data.fill_(float("nan"))
    with pytest.raises(DfmsdError, match=f"teacher {tiny_teachers[0]} has values that are NaN or infinite in 1 of"):
        assemble_task(config, build_student(config, CLASSES), teachers)


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_the_checkpoint_of_a_run_is_the_student_of_that_epoch(finished_run: Callable[..., Path], name: str) -> None:
    run = finished_run(f"run_{name}")
    content = torch.load(run / "last.ckpt", weights_only=True)
    content["state_dict"][f"task.trainable.student.model.{BIAS}"] += 1
    torch.save(content, run / name)
    delivered = load_detector(run).model.state_dict()[BIAS]
    assert torch.equal(load_detector(run / name).model.state_dict()[BIAS], delivered + 1)
    assert load_detector(run / name).image_size == 64


def test_a_checkpoint_outside_a_run_is_refused_with_what_is_expected(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "best.ckpt")
    with pytest.raises(DfmsdError, match=r"best\.ckpt is not a checkpoint of dfmsd: expected .* a run folder, or best"):
        load_detector(tmp_path / "best.ckpt")
