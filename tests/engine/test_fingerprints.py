"""Changed data, teachers and processes: noticed when a run is resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.helpers.changes import drop_image, edit, make_crowd, move_box, shift_weights, swap_classes
from tests.helpers.runs import quietly

from dfmsd.data import CocoDataModule, DataConfig
from dfmsd.detectors import load_detector
from dfmsd.distillation.stages import StageConfig
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.fingerprints import PROCESSES, changed_inputs, fingerprint_data, fingerprint_teachers
from dfmsd.engine.run import distill
from dfmsd.errors import DfmsdError

MakeDistill = Callable[..., DistillConfig]


@pytest.fixture(scope="module")
def begun(
    distill_config: MakeDistill,
    tiny_root: Path,
    tiny_teachers: tuple[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with ``data``, a ``teacher``, and a ``run`` of both."""
    folder = tmp_path_factory.mktemp("begun")
    shutil.copytree(tiny_root, folder / "data")
    shutil.copytree(tiny_teachers[0], folder / "teacher")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        quietly(config_of(distill_config))
    return folder


@pytest.fixture
def here(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, which is the working folder."""
    folder = Path(shutil.copytree(begun, tmp_path / "begun"))
    monkeypatch.chdir(folder)
    return folder


def config_of(distill_config: MakeDistill) -> DistillConfig:
    data = DataConfig("data", image_size=64, batch_size=4)
    return distill_config(Path("run"), data=data, stages=[StageConfig(epochs=1, teacher="teacher")])


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda: edit(Path("data/annotations/instances_train.json"), move_box), "data.train"),
        (lambda: edit(Path("data/annotations/instances_train.json"), drop_image), "data.train"),
        (lambda: edit(Path("data/annotations/instances_val.json"), make_crowd), "data.val"),
        (
            lambda: [edit(file, swap_classes) for file in Path("data/annotations").iterdir()],
            "data.train, data.val",
        ),
        (lambda: shift_weights(Path("teacher")), "teacher teacher"),
        (
            lambda: edit(Path("run/environment.json"), lambda content: content["inputs"].update({PROCESSES: 2})),
            "number of processes",
        ),
    ],
    ids=["box", "images", "crowd", "classes", "teacher", "processes"],
)
def test_a_run_is_not_resumed_on_other_inputs(
    here: Path,
    distill_config: MakeDistill,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[], object],
    reason: str,
) -> None:
    change()
    before = files(here)
    monkeypatch.setattr("dfmsd.engine.run.fit", lambda *_: pytest.fail("the run was continued"))
    with pytest.raises(DfmsdError, match=f"^{reason} changed since run began; restore what .*, or choose another"):
        distill(config_of(distill_config), resume=True)
    assert files(here) == before


def test_a_run_without_fingerprints_is_resumed_and_gets_them(here: Path, distill_config: MakeDistill) -> None:
    """One of an earlier version."""
    file = Path("run/environment.json")
    written = json.loads(file.read_text())["inputs"]
    edit(file, lambda content: content.pop("inputs"))
    quietly(config_of(distill_config), resume=True)
    assert json.loads(file.read_text())["inputs"] == written
    assert written.keys() == {"data.train", "data.val", "teacher teacher", PROCESSES}


def test_data_that_have_moved_are_the_same(tiny_root: Path, tmp_path: Path) -> None:
    roots = tiny_root, shutil.copytree(tiny_root, tmp_path / "moved")
    former, moved = (fingerprint_data(CocoDataModule(DataConfig(str(root)))) for root in roots)
    assert former == moved


def test_held_out_images_are_other_data(tiny_root: Path) -> None:
    whole, part = (fingerprint_data(CocoDataModule(DataConfig(str(tiny_root), holdout=share))) for share in (0, 0.5))
    assert changed_inputs(whole, part) == ["data.train", "data.val"]


def test_inputs_that_one_side_does_not_know_are_not_compared(tiny_teachers: tuple[str, str]) -> None:
    first, second = map(load_detector, tiny_teachers)
    former = fingerprint_teachers({"a": first, "b": second})
    assert changed_inputs(former, fingerprint_teachers({"a": second, "c": first})) == ["teacher a"]
    assert changed_inputs({}, former) == []
