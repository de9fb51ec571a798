"""A short, real distillation on blood cells, and one in two processes."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from dfmsd import DataConfig, DetectorConfig, DistillConfig, StageConfig, TrainConfig, train
from dfmsd.engine.run import distill


@pytest.mark.slow
def test_a_student_of_blood_cells_learns_from_two_teachers(shared_data: Path, tmp_path: Path) -> None:
    data = DataConfig(str(shared_data / "bccd"), image_size=128, batch_size=8)
    chain = []
    for arch in ("fcos", "faster_rcnn"):
        model = DetectorConfig(arch, "tf_efficientnet_lite0", fpn_channels=48, head_convs=1, pretrained=True)  # type: ignore[arg-type]
        teacher = train(TrainConfig(out=str(tmp_path / arch), data=data, model=model, epochs=2))
        assert teacher.metrics["AP"] > 0
        chain.append(StageConfig(epochs=2, teacher=str(teacher.run)))
    student = DetectorConfig("fcos", "mobilenetv3_small_050", fpn_channels=32, head_convs=1)
    result = distill(DistillConfig(out=str(tmp_path / "student"), data=data, student=student, stages=chain))

    assert result.metrics["AP"] > 0
    with (result.run / "log.csv").open(newline="") as file:
        log = list(csv.DictReader(file))
    assert len(log) == 4 * (292 // 8)
    for stage in ("1", "2"):
        steps = [row for row in log if row["stage"] == stage]
        for kind, falls in (("sfa/", True), ("pearson/", False)):
            names = [name for name in steps[0] if name.startswith(kind) and steps[0][name]]
            course = np.array([[float(row[name]) for name in names] for row in steps]).mean(axis=1)
            assert np.isfinite(course).all()
            first, last = course[:10].mean(), course[-10:].mean()
            assert (last < first) if falls else (last > first), f"{kind} in stage {stage}: {first} -> {last}"
