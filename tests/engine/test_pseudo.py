from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.helpers.few_neurons import FewNeurons
from tests.helpers.finder import Finder, draw_images
from tests.helpers.runs import press_ctrl_c, stopping
from tests.helpers.tiny_transformers import save_model

from dfmsd.data import DataConfig
from dfmsd.data.pseudo import PseudoConfig
from dfmsd.detectors import DetectorConfig
from dfmsd.distillation.stages import StageConfig
from dfmsd.distillation.task import DistillationTask
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.fit import Result
from dfmsd.engine.run import check, distill
from dfmsd.engine.steplog import CsvTable
from dfmsd.errors import DfmsdError, Stopped

MakeDistill = Callable[..., DistillConfig]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("data") / "more")


@pytest.fixture
def make(distill_config: MakeDistill, tiny_root: Path, folder: Path, tmp_path: Path) -> MakeDistill:
    """A run of one epoch, whose teacher labels."""

    def build(out: str = "run", *, data: dict[str, Any] | None = None, **pseudo: Any) -> DistillConfig:
        config = DataConfig(
            str(tiny_root),
            image_size=64,
            batch_size=4,
            unlabeled=str(folder),
            pseudo=PseudoConfig(**{"score": "auto", **pseudo}),
        )
        stages = [StageConfig(epochs=1, teacher="finder")]
        return distill_config(tmp_path / out, data=replace(config, **(data or {})), stages=stages)

    return build


def run(config: DistillConfig, labeler: FewNeurons | None = None, **options: Any) -> Result:
    teachers = {"finder": labeler or Finder()}
    return distill(config, teachers=teachers, allow_weak_teacher=True, check_images=1, **options)


def written(result: Result) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((result.run / "pseudo_labels.json").read_text())
    return content


def test_the_first_teacher_of_the_first_stage_labels(make: MakeDistill) -> None:
    assert make().labeler == "finder"
    assert make(teacher="other").labeler == "other"
    assert make().without_teachers().labeler == "finder"


def test_a_run_with_features_keeps_images_without_a_box(
    make: MakeDistill, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    note_steps(monkeypatch, seen)
    content = written(run(make()))
    assert all(images == 8 for images, _ in seen)
    assert any(4 < targets < 8 for _, targets in seen)
    assert content["info"]["teacher"] == "finder"
    assert len(content["images"]) == 3
    assert len(content["annotations"]) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert "pseudo-labels: finder labels 3 images of" in printed
    assert "best F1 on the 8 labeled training images on" in printed
    assert "if the teacher was trained on these, they flatter it" in printed
    assert "pseudo-labels: 2 boxes in 2 of 3 images; 1 without a confident detection stay unlabeled" in printed
    assert "lowest scores of pseudo-labels: square 0.90 (F1" in printed


def test_a_run_without_features_trains_on_boxes_alone(make: MakeDistill, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    note_steps(monkeypatch, seen)
    result = run(make(score=0.5), no_distill=True)
    assert all(images == targets == 8 for images, targets in seen)
    assert len(written(result)["annotations"]) == 2
    assert set((result.run / "log.csv").read_text().splitlines()[0].split(",")) >= {"task/classification"}


@pytest.mark.parametrize("arch", ["faster_rcnn", "ssdlite", pytest.param("hf", marks=pytest.mark.slow)])
def test_students_of_any_kind_learn_from_boxes_without_a_teacher_in_the_stages(
    make: MakeDistill, tmp_path: Path, arch: str
) -> None:
    config = make(score=0.5, teacher="finder")
    if arch == "hf":
        pytest.importorskip("transformers")
        save_model("rt_detr", tmp_path / "model")
        student = DetectorConfig(f"hf:{tmp_path / 'model'}")
    else:
        student = replace(config.student, arch=arch)
    result = run(replace(config, student=student, stages=[StageConfig(epochs=1)]))
    assert len(written(result)["annotations"]) == 2
    assert result.metrics["AP"] is not None


def test_soft_pseudo_labels_are_refused_where_the_loss_cannot_take_them(make: MakeDistill) -> None:
    config = make(keep="soft")
    config = replace(config, student=replace(config.student, arch="ssdlite"))
    with pytest.raises(DfmsdError, match=r"^data.pseudo.keep: soft needs .* as fcos, retinanet and gfl have; .* hard$"):
        run(config, no_distill=True)


def test_soft_pseudo_labels_change_the_student(make: MakeDistill) -> None:
    runs = (run(make(f"run-{keep}", keep=keep), no_distill=True).run for keep in ("hard", "soft"))
    hard, soft = (load_file(folder / "student.safetensors") for folder in runs)
    assert any(not torch.equal(value, soft[name]) for name, value in hard.items())


def note_steps(monkeypatch: pytest.MonkeyPatch, seen: list[tuple[int, int]]) -> None:
    """Note the numbers of images and targets of each training step."""
    forward = DistillationTask.forward

    def noting(self: DistillationTask, images: Any, targets: Any, *args: Any, **kwargs: Any) -> Any:
        if self.training:
            seen.append((len(images), len(targets)))
        return forward(self, images, targets, *args, **kwargs)

    monkeypatch.setattr(DistillationTask, "forward", noting)


def test_a_resumed_run_reads_its_labels_again(make: MakeDistill, monkeypatch: pytest.MonkeyPatch) -> None:
    finder = Finder()
    whole = run(make("whole"), finder)
    config = make("stopped")
    monkeypatch.setattr("dfmsd.engine.fit.StopOnInterrupt", stopping(1, press_ctrl_c))
    with pytest.raises(Stopped):
        run(config, finder)
    monkeypatch.undo()
    labels = Path(config.out, "pseudo_labels.json")
    kept = labels.read_text()
    labels.unlink()
    with pytest.raises(DfmsdError, match=r"pseudo_labels.json is missing or damaged, .*start again with `overwrite`$"):
        run(config, finder, resume=True)
    labels.write_text(kept)
    monkeypatch.setattr("dfmsd.engine.pseudo.pseudo_labels", None)  # nothing is labeled again
    resumed = run(config, finder, resume=True)
    assert labels.read_text() == kept
    own, other = (load_file(one.run / "student.safetensors") for one in (resumed, whole))
    assert all(torch.equal(value, other[name]) for name, value in own.items())


@pytest.mark.parametrize(
    ("labeler", "message"),
    [
        (Finder(scores=(0.1, 0.1)), "^data.pseudo: no detection in the 3 images of .* lower data.pseudo.score"),
        (FewNeurons(), "^data.pseudo: finder knows none of the data's classes square, disc; it knows thing; map them"),
    ],
)
def test_a_detector_that_cannot_label_is_refused_before_the_folder_is_made(
    make: MakeDistill, labeler: FewNeurons, message: str
) -> None:
    config = make(score=0.5)
    with pytest.raises(DfmsdError, match=message):
        run(config, labeler)
    assert not Path(config.out, "config.yaml").exists()


def test_a_detector_without_a_head_is_refused(make: MakeDistill) -> None:
    headless = FewNeurons()
    headless.class_names = ()
    with pytest.raises(DfmsdError, match=r"^data.pseudo: finder has no head, so it finds no objects to label; name"):
        run(make(), headless)


def test_a_reference_that_is_nothing_is_refused(make: MakeDistill) -> None:
    with pytest.raises(DfmsdError, match="nowhere"):
        run(make(teacher="nowhere"), no_distill=True)


def test_the_check_shows_the_plan_and_labels_nothing(
    make: MakeDistill, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfmsd.engine.pseudo.pseudo_labels", None)
    config = make(data={"holdout": 0.4}, flip=True, image_size=96)
    check(config, teachers={"finder": Finder("disc")}, allow_weak_teacher=True, check_images=1)
    printed = " ".join(capsys.readouterr().err.split())
    assert "more at 96 pixels and mirrored before training, from the scores of best F1 on the" in printed
    assert "images of data.holdout on" in printed
    assert "finder does not know square: there, these are background" in printed
    check(make(score=0.25), teachers={"finder": Finder()}, allow_weak_teacher=True, check_images=1)
    assert "before training, from score 0.25 on" in " ".join(capsys.readouterr().err.split())


def test_a_labeler_may_have_other_class_names(make: MakeDistill) -> None:
    plain = written(run(make("plain")))
    with pytest.raises(
        DfmsdError, match=r"^data.pseudo: finder knows none .*it knows box, round; map them in teacher_cl"
    ):
        run(make("refused"), Finder("box", "round"))
    renamed = replace(make("renamed"), teacher_classes={"box": "square", "round": "disc"})
    assert written(run(renamed, Finder("box", "round"))) == plain


def test_pseudo_labels_are_no_labels_in_a_stage_without_labels(make: MakeDistill) -> None:
    config = make()
    (stage,) = config.stages
    result = run(replace(config, stages=[replace(stage, labels=False), stage]))
    log = CsvTable(result.run / "log.csv").rows()
    own = [name for name in log[0] if name.startswith("task/")]
    assert own
    assert all((row[name] == "") == (row["stage"] == "1") for row in log for name in own)
