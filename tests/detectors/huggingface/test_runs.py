"""Runs with detectors of Hugging Face transformers as teachers and students."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers.tiny_transformers import CLASSES, NEEDED, Saved

from dfmsd.data import CocoDataModule
from dfmsd.detectors import Detector, DetectorConfig, load_detector
from dfmsd.distillation.stages import StageConfig
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.run import check, distill
from dfmsd.errors import DfmsdError
from dfmsd.estimation.estimator import first_batch, untrained_task
from dfmsd.estimation.flops import count_stage
from dfmsd.visualization import visualize

pytestmark = NEEDED
Config = Callable[..., DistillConfig]


@pytest.mark.parametrize(
    ("model_type", "level"),
    [
        ("rt_detr", "p4"),
        ("deformable_detr", "p4"),
        ("deimv2", "p4"),
        ("rf_detr", "p4"),
        ("yolos", "p4"),
        ("detr", "p5"),
    ],
)
def test_a_transformer_teaches_a_convolutional_student(
    saved: Saved, distill_config: Config, tmp_path: Path, model_type: str, level: str
) -> None:
    reference = f"hf:{saved(model_type)}"
    config = distill_config(tmp_path / "run", stages=[StageConfig(epochs=1, teacher=reference)])
    result = distill(config, allow_weak_teacher=True, check_images=1)
    assert f"mask/{level}" in (tmp_path / "run" / "log.csv").read_text().splitlines()[0]
    _detects_alike(result.student, tmp_path / "run")


@pytest.mark.parametrize(
    ("model_type", "columns"),
    [
        ("rt_detr", ("task/loss_vfl", "task/loss_giou_dn_1", "mask/p5")),
        ("deimv2", ("task/loss_mal", "task/loss_giou_dn_1", "mask/p5")),
        ("rf_detr", ("task/loss_ce", "task/loss_giou_enc", "mask/p4")),
    ],
)
def test_a_transformer_learns_from_a_convolutional_teacher(
    saved: Saved,
    distill_config: Config,
    tiny_teachers: tuple[str, str],
    tmp_path: Path,
    model_type: str,
    columns: tuple[str, ...],
) -> None:
    config = distill_config(
        tmp_path / "run",
        student=DetectorConfig(f"hf:{saved(model_type)}"),
        stages=[StageConfig(epochs=1, teacher=tiny_teachers[0])],
    )
    result = distill(config, allow_weak_teacher=True, check_images=1)
    header = (tmp_path / "run" / "log.csv").read_text().splitlines()[0]
    assert all(name in header for name in columns)
    _detects_alike(result.student, tmp_path / "run")


def test_queries_learn_from_queries(saved: Saved, distill_config: Config, tmp_path: Path) -> None:
    config = distill_config(
        tmp_path / "run",
        student=DetectorConfig(f"hf:{saved('rf_detr')}"),
        stages=[StageConfig(epochs=1, teacher=f"hf:{saved('deimv2')}")],
        loss=[{"name": "dfmsd"}, {"name": "detrdistill"}],
    )
    result = distill(config, allow_weak_teacher=True, check_images=1)
    header = (tmp_path / "run" / "log.csv").read_text().splitlines()[0]
    assert all(name in header for name in ("mask/p4", "match_cls/queries", "match_l1/queries", "match_giou/queries"))
    _detects_alike(result.student, tmp_path / "run")


def test_a_run_on_queries_alone_is_checked_and_has_no_maps_to_draw(
    saved: Saved, distill_config: Config, finished_run: Callable[..., Path], tiny_root: Path, tmp_path: Path
) -> None:
    teacher = f"hf:{saved('rt_detr')}"
    values: dict[str, Any] = {
        "student": DetectorConfig(f"hf:{saved('d_fine')}"),
        "stages": [StageConfig(epochs=1, teacher=teacher)],
        "loss": "detrdistill",
    }
    found = check(distill_config(tmp_path / "run", **values), allow_weak_teacher=True, check_images=1)
    assert list(found.pairs.values()) == ["queries"]
    assert [term.name for term in found.terms] == ["task", "match_cls", "match_l1", "match_giou"]
    run = str(finished_run("queries", **values))
    with pytest.raises(DfmsdError, match=r"learned the predictions of the queries of hf:.*nothing to draw"):
        visualize(run, teacher, out=tmp_path / "out", images=[tiny_root / "val"])
    assert not (tmp_path / "out").exists()


def test_a_run_is_checked_before_it_starts(saved: Saved, distill_config: Config, tmp_path: Path) -> None:
    stages = [StageConfig(epochs=1, teacher=f"hf:{saved('rt_detr')}")]
    config = distill_config(tmp_path / "run", student=DetectorConfig(f"hf:{saved('d_fine')}"), stages=stages)
    found = check(config, allow_weak_teacher=True, check_images=1)
    assert found.levels["student"] == "p3 /8 x64, p4 /16 x64, p5 /32 x64"
    assert {term.name for term in found.terms} == {"task", "mask", "sfa"}
    assert all(term.gradient > 0 for term in found.terms)


def test_the_cost_of_a_step_is_counted(saved: Saved, distill_config: Config, tmp_path: Path) -> None:
    """Teacher and student are one model; only the student runs its decoder, the loss and the backward pass."""
    reference = f"hf:{saved('rt_detr')}"
    stages = [StageConfig(epochs=1, teacher=reference)]
    config = distill_config(tmp_path / "run", student=DetectorConfig(reference), stages=stages)
    task = untrained_task(config, CLASSES)
    cost = count_stage(task.train(), first_batch(CocoDataModule(config.data)))
    assert cost.teacher is not None
    assert cost.student.forward > cost.teacher.forward > 0
    assert cost.student.backward > cost.student.forward
    assert set(cost.levels) == {"p3", "p4", "p5"}
    config.loss = "detrdistill"  # for which the teacher runs its decoder too
    whole = count_stage(untrained_task(config, CLASSES).train(), first_batch(CocoDataModule(config.data)))
    assert whole.teacher is not None
    assert whole.teacher.forward > cost.teacher.forward
    assert not whole.levels


def _detects_alike(delivered: Detector, run: Path) -> None:
    images = torch.rand(2, 3, 64, 64)
    loaded = load_detector(run)
    loaded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # other layouts take other kernels
    assert loaded.class_names == CLASSES
    sizes = [(64, 64), (40, 64)]
    for own, theirs in zip(loaded.detect(images, sizes), delivered.detect(images, sizes), strict=True):
        assert all(torch.equal(own[key], theirs[key]) for key in ("boxes", "scores", "labels"))  # type: ignore[literal-required]
