from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers.fixtures import TINY_BACKBONE

import dfmsd
from dfmsd.engine.configfile import read_config
from dfmsd.errors import DfmsdError

CLASSES = ("square", "disc")


def tiny(**values: Any) -> dfmsd.DetectorConfig:
    return dfmsd.DetectorConfig(**{"backbone": TINY_BACKBONE, "fpn_channels": 16, "head_convs": 1, **values})


def test_a_few_lines_distil_detectors_that_are_already_there(
    tiny_root: Path, tiny_teachers: tuple[str, str], tmp_path: Path
) -> None:
    config = tiny(arch="retinanet")
    student = dfmsd.build_detector(config, CLASSES)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    teachers = [dfmsd.load_detector(tiny_teachers[0]), Path(tiny_teachers[1])]
    data = dfmsd.DataConfig(str(tiny_root), image_size=64, batch_size=4)
    result = dfmsd.distill(student, teachers, data, tmp_path / "run", epochs=2, allow_weak_teacher=True)

    assert isinstance(result.metrics["AP"], float)
    assert result.student is student
    assert any(not torch.equal(value, before[name]) for name, value in student.state_dict().items())
    written = read_config(dfmsd.DistillConfig, result.run / "config.yaml")
    assert written.student == config
    assert [(stage.teacher, stage.epochs) for stage in written.stages] == [
        ("python:teacher1", 1),
        (tiny_teachers[1], 1),
    ]
    assert json.loads((result.run / "student.json").read_text())["detector"]["arch"] == "retinanet"
    loaded = dfmsd.load_detector(result.run).model.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in student.model.state_dict().items())
    with pytest.raises(DfmsdError, match="already holds a run"):
        dfmsd.distill(student, teachers, data, tmp_path / "run", epochs=2)
    again = dfmsd.distill(student, teachers, data, tmp_path / "run", epochs=2, resume=True)
    assert again.metrics == result.metrics


@pytest.mark.parametrize(("epochs", "lengths"), [(5, [3, 2]), (2, [1, 1]), ([4, 1], [4, 1])])
def test_epochs_are_shared_or_given_one_by_one(
    monkeypatch: pytest.MonkeyPatch, epochs: Any, lengths: list[int]
) -> None:
    seen: list[dfmsd.DistillConfig] = []
    monkeypatch.setattr("dfmsd.engine.run.distill", lambda config, **_: seen.append(config))
    dfmsd.distill(tiny(), ["a", "b"], "data", "out", epochs=epochs, seed=3, loss={"name": "dfmsd", "beta": 2.0})
    assert [stage.epochs for stage in seen[0].stages] == lengths
    assert (seen[0].seed, seen[0].loss["beta"], seen[0].data.root, seen[0].out) == (3, 2.0, "data", "out")


@pytest.mark.parametrize("teachers", ["a", Path("a"), ["a"]])
def test_one_teacher_needs_no_list(monkeypatch: pytest.MonkeyPatch, teachers: Any) -> None:
    seen: list[dfmsd.DistillConfig] = []
    monkeypatch.setattr("dfmsd.engine.run.distill", lambda config, **_: seen.append(config))
    dfmsd.distill(tiny(), teachers, "data", "out")
    assert [(stage.teacher, stage.epochs) for stage in seen[0].stages] == [("a", 12)]


@pytest.mark.parametrize(
    ("epochs", "message"),
    [([1, 2, 3], "epochs: 3 numbers for 2 stages"), (1, r"stages\.1\.epochs: 0 is below 1")],
)
def test_epochs_that_do_not_fit_the_teachers_are_refused(epochs: Any, message: str) -> None:
    with pytest.raises(DfmsdError, match=message):
        dfmsd.distill(tiny(), ["a", "b"], "data", "out", epochs=epochs)


def test_a_student_that_could_not_be_saved_is_refused_before_any_work(tmp_path: Path) -> None:
    student = dfmsd.build_detector(tiny(), CLASSES)
    student.config = None  # as one that was wrapped by hand
    with pytest.raises(DfmsdError, match="student: this OneStageDetector was not built from a configuration"):
        dfmsd.distill(student, "a", tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_public_name_is_there() -> None:
    assert dfmsd.__all__ == sorted(dfmsd.__all__)
    assert all(hasattr(dfmsd, name) for name in dfmsd.__all__)
    assert callable(dfmsd.distill)
    with pytest.raises(AttributeError, match="no attribute 'mgd'"):
        _ = dfmsd.mgd  # type: ignore[attr-defined]


def test_several_teachers_of_one_stage_are_a_list_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[dfmsd.DistillConfig, dict[str, Any]]] = []
    monkeypatch.setattr("dfmsd.engine.run.distill", lambda config, **given: seen.append((config, given["teachers"])))
    teachers = [dfmsd.build_detector(tiny(), CLASSES) for _ in range(2)]
    dfmsd.distill(tiny(), ["a", [teachers[0], Path("b")], teachers[1]], "data", "out", epochs=6)
    config, given = seen[0]
    stages = [("a", 2), (["python:teacher2", "b"], 2), ("python:teacher4", 2)]
    assert [(stage.teacher, stage.epochs) for stage in config.stages] == stages
    assert given == {"python:teacher2": teachers[0], "python:teacher4": teachers[1]}
