"""A trained teacher that is fed with other pixels than it was trained on is caught by the pre-flight."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.command import Command
from tests.helpers.fixtures import STUDENT

from dfmsd.engine.config import TrainConfig
from dfmsd.engine.optim import OptimConfig
from dfmsd.engine.run import train

pytestmark = pytest.mark.slow
BACKBONE = "mobilenetv3_small_050"


@pytest.fixture(scope="module")
def teacher(train_config: Callable[..., TrainConfig], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """Folder of a teacher that knows reddish squares from bluish discs, and its AP."""
    optim, model = OptimConfig(lr=4e-3, warmup=5), replace(STUDENT, backbone=BACKBONE)
    config = train_config(tmp_path_factory.mktemp("runs") / "teacher", epochs=40, optim=optim, model=model)
    return Path(config.out), train(config).metrics["AP"]


def fed_otherwise(teacher: Path, mean: float, std: float, folder: Path) -> Path:
    """A copy of a teacher that normalises its pixels with these."""
    shutil.copytree(teacher, folder)
    content = json.loads((folder / "student.json").read_text(encoding="utf-8"))
    content.update(image_mean=[mean] * 3, image_std=[std] * 3)
    (folder / "student.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def config_of(teacher: Path, data: Path) -> dict[str, Any]:
    return {
        "data": {"root": str(data), "image_size": 64, "batch_size": 4},
        "student": {"backbone": BACKBONE, "fpn_channels": 16, "head_convs": 1},
        "stages": [{"teacher": str(teacher), "epochs": 1}],
        "out": "run",
    }


def test_a_teacher_with_its_own_normalization_is_accepted(
    dfmsd: Command, teacher: tuple[Path, float], tiny_root: Path
) -> None:
    run, ap = teacher
    status, _, err = dfmsd("check", "--config", dfmsd.write("good.yaml", config_of(run, tiny_root)))
    assert status == 0
    assert ap > 0.15
    assert f"{100 * ap:.1f}" in err


@pytest.mark.parametrize(
    ("mean", "std"), [(0.0, 1 / 255), (0.0, 1.0), (120.0, 57.0)], ids=["0..255", "not normalised", "scaled twice"]
)
@pytest.mark.parametrize("command", ["check", "distill"])
def test_a_teacher_with_the_wrong_normalization_is_refused_with_the_usual_causes(
    dfmsd: Command, teacher: tuple[Path, float], tiny_root: Path, mean: float, std: float, command: str
) -> None:
    spoilt = fed_otherwise(teacher[0], mean, std, dfmsd.folder / "teacher")
    error = dfmsd.refusal(command, "--config", dfmsd.write("bad.yaml", config_of(spoilt, tiny_root)))
    assert f"teacher {spoilt} measures AP 0." in error
    assert "in this pipeline, about 0; check its pixels (mean and std, RGB or BGR, 0..1 or 0..255), class" in error
