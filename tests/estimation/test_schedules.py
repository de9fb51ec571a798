from __future__ import annotations

import copy

import pytest
import torch
from tests.helpers.fixtures import TINY_BACKBONE

from dfmsd.detectors import DetectorConfig, build_detector
from dfmsd.distillation.stages import StageConfig
from dfmsd.distillation.task import DistillationTask
from dfmsd.distillation.teacher import FrozenTeacher
from dfmsd.engine.config import DistillConfig
from dfmsd.estimation import schedules
from dfmsd.estimation.flops import count
from dfmsd.estimation.schedules import (
    COCO_IMAGES,
    COCO_SIZE,
    GPUS,
    UTILIZATION,
    ImageFlops,
    coco_flops,
    gpu_hours,
    stage_flops,
)


def test_extrapolation_matches_exact_count_of_a_coco_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedules, "SIDES", (128, 256))
    student = build_detector(DetectorConfig("faster_rcnn", TINY_BACKBONE, fpn_channels=16), ("a",))
    teacher = build_detector(DetectorConfig("fcos", TINY_BACKBONE, fpn_channels=32, head_convs=1), ("a",))
    stages = [StageConfig(epochs=1, teacher="t")]
    task = DistillationTask(student, stages, [[FrozenTeacher(teacher, "t")]], {"name": "dfmsd"}).train()
    found = stage_flops(task, torch.device("cpu"))
    images = torch.empty(1, 3, *COCO_SIZE, device="meta")
    shapes = copy.deepcopy(teacher).to("meta").eval()
    with torch.no_grad():
        exact = count(lambda: shapes.features(images), shapes)
    assert found["teacher"](COCO_SIZE) == pytest.approx(exact.forward, rel=0.02)
    head = student.model.roi_heads
    regions = head.fg_bg_sampler.batch_size_per_image
    layers = (head.box_head.fc6, head.box_head.fc7, head.box_predictor.cls_score, head.box_predictor.bbox_pred)
    box_head = sum(3 * 2 * regions * layer.weight.numel() for layer in layers)
    assert found["student"].constant == pytest.approx(box_head, rel=0.1)
    assert found["loss"].constant == pytest.approx(0, abs=0.02 * found["loss"](COCO_SIZE))
    seen = DistillationTask(student, stages, [[FrozenTeacher(teacher, "t", scale=1.5)]], {"name": "pkd"}).train()
    larger = stage_flops(seen, torch.device("cpu"))["teacher"](COCO_SIZE)
    assert larger == pytest.approx(1.5**2 * found["teacher"](COCO_SIZE), rel=0.02)


def test_schedule_weights_stages_by_their_epochs() -> None:
    stages = [StageConfig(epochs=1), StageConfig(epochs=3, teacher="t")]
    plain = {"student": ImageFlops(5.0, 1.0)}
    taught = {**plain, "teacher": ImageFlops(0.0, 2.0), "loss": ImageFlops(1.0, 0.0)}
    flops = coco_flops(DistillConfig(out="run", stages=stages), [plain, taught], epochs=12, size=(10, 10))
    assert flops == pytest.approx(COCO_IMAGES * (3 * 105 + 9 * (105 + 200 + 1)))


def test_hours_are_flops_over_the_assumed_share_of_the_peak() -> None:
    flops = 1e12 * 312 * UTILIZATION * 7200
    assert gpu_hours({"1x": flops}, "bf16")["A100 SXM"] == pytest.approx({"1x": 2.0})
    assert gpu_hours({"1x": flops}, "32")["A100 SXM"] == pytest.approx({"1x": 4.0})
    assert list(gpu_hours({"1x": flops}, "16")) == list(GPUS)
