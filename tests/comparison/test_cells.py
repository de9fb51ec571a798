from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dfmsd.comparison.cells import build_tasks, make_cells
from dfmsd.comparison.config import CompareConfig
from dfmsd.data import CocoDataModule
from dfmsd.detectors import DetectorConfig, build_detector, save_detector
from dfmsd.engine.run import build_task
from dfmsd.engine.saved_config import write_config
from dfmsd.errors import DfmsdError
from dfmsd.losses import DFMSD, DFMSDOptions
from dfmsd.runfolder import RunFolder

MakeCompare = Callable[..., CompareConfig]
CLASSES = ("square", "disc")
METHODS = ["none", "pkd", "pkd+mgd", "dfmsd", "dfmsd@T1+T2", "dfmsd@T2+T2", "dfmsd@T1:1+T2:7", "dfmsd@T1&T2"]


def test_every_method_has_the_same_budget(compare_config: MakeCompare, tmp_path: Path) -> None:
    config = compare_config(tmp_path, methods=METHODS, seeds=[0, 3], epochs=11)
    cells, skipped = make_cells(config, config.parsed_methods(), "both")
    assert not skipped
    assert len(cells) == 2 * len(METHODS)
    assert {cell.config.epochs for cell in cells} == {11}
    assert [cell.config.seed for cell in cells] == [0] * len(METHODS) + [3] * len(METHODS)
    assert len({cell.run for cell in cells}) == len(cells)
    for cell in cells:
        assert cell.config.optim == config.optim
        assert cell.config.data == config.data
        assert cell.config.deliver == "last"


def test_images_without_annotations_are_for_the_methods_alone(compare_config: MakeCompare, tmp_path: Path) -> None:
    config = compare_config(tmp_path, methods=["none", "pkd", "dfmsd@T1+T2"])
    config = replace(config, data=replace(config.data, unlabeled="images"))
    cells, _ = make_cells(config, config.parsed_methods(), "both")
    expected = {"none": None, "pkd": "images", "dfmsd@T1+T2": "images"}
    assert {cell.method.name: cell.config.data.unlabeled for cell in cells} == expected


def test_a_method_may_have_a_balance_of_its_own(compare_config: MakeCompare, tmp_path: Path) -> None:
    methods = ["none", "pkd", "pkd[weight=2]@T1+T2", "mgd", "pkd+mgd"]
    config = compare_config(tmp_path, methods=methods, balance=40.0, balances={"pkd": 4.0, "pkd+mgd": 9.0})
    cells, _ = make_cells(config, config.parsed_methods(), "both")
    expected = {"none": None, "pkd": 4.0, "pkd[weight=2]@T1+T2": 4.0, "mgd": 40.0, "pkd+mgd": 9.0}
    assert {cell.method.name: cell.config.balance for cell in cells} == expected


@pytest.mark.parametrize("family", ["pkd[weight=2]", "pkd@T1", "pdk"])
def test_balances_are_of_losses(compare_config: MakeCompare, tmp_path: Path, family: str) -> None:
    with pytest.raises(DfmsdError, match=family.replace("[", "\\[")):
        compare_config(tmp_path, balances={family: 4.0})


def test_methods_start_from_the_same_weights_and_see_the_same_batches(
    compare_config: MakeCompare, tmp_path: Path
) -> None:
    config = compare_config(tmp_path, methods=METHODS, seeds=[5])
    cells, _ = make_cells(config, config.parsed_methods(), "both")
    starts = []
    for cell in cells:
        weights = build_task(cell.config, CLASSES).student.state_dict()
        batch = next(iter(CocoDataModule(cell.config.data, seed=cell.config.seed).train_dataloader()))
        starts.append((weights, batch.images, batch.image_ids))
    for weights, images, ids in starts[1:]:
        assert all(torch.equal(value, starts[0][0][name]) for name, value in weights.items())
        assert torch.equal(images, starts[0][1])
        assert ids == starts[0][2]


def test_pairs_share_the_baseline(compare_config: MakeCompare, tmp_path: Path, tiny_teachers: tuple[str, str]) -> None:
    pairs = {"both": list(tiny_teachers), "one": [tiny_teachers[0]]}
    config = compare_config(tmp_path, pairs=pairs, methods=["pkd", "dfmsd@T1+T2", "pkd@T1&T2"])
    both, one = (make_cells(config, config.parsed_methods(), pair) for pair in pairs)
    assert [cell.method.name for cell in both[0]] == [
        "none",
        "pkd",
        "dfmsd@T1+T2",
        "pkd@T1&T2",
    ]  # the baseline without being asked
    assert both[0][0].config == one[0][0].config
    assert both[0][1].run == tmp_path / "both" / "pkd" / "seed-0"
    assert both[0][1].config.stages[0].teacher == tiny_teachers[1]
    assert one[0][1].config.stages[0].teacher == tiny_teachers[0]
    assert [(skipped.method.name, skipped.reason) for skipped in one[1]] == [
        ("dfmsd@T1+T2", "needs T2, the pair has 1 teacher(s)"),
        ("pkd@T1&T2", "needs T2, the pair has 1 teacher(s)"),
    ]
    assert both[0][3].config.stages[0].teachers == tiny_teachers
    assert both[0][3].run == tmp_path / "both" / "pkd@T1_T2" / "seed-0"


def test_a_loss_that_refuses_a_pair_is_skipped_with_its_reason(compare_config: MakeCompare, tmp_path: Path) -> None:
    config = compare_config(tmp_path, methods=["pkd", "crosskd"])
    cells, _ = make_cells(config, config.parsed_methods(), "both")
    tasks, skipped = build_tasks(config, cells, CLASSES)
    assert list(tasks) == ["none", "pkd"]
    [refused] = skipped
    assert refused.method.name == "crosskd"
    assert "head" in refused.reason
    students = [task.student for _, task in tasks.values()]
    assert students[0] is students[1]


def test_every_student_but_the_baselines_inherits_alike(
    compare_config: MakeCompare, tmp_path: Path, tiny_teachers: tuple[str, str]
) -> None:
    teacher = DetectorConfig("fcos", "resnet10t", fpn_channels=16, head_convs=1)
    save_detector(build_detector(teacher, CLASSES), tmp_path / "own_kind")
    pairs = {"both": [str(tmp_path / "own_kind"), tiny_teachers[1]]}
    methods = ["inherit", "pkd", "dfmsd@T1+T2", "none"]
    config = compare_config(tmp_path, pairs=pairs, methods=methods, inherit=1)
    cells, _ = make_cells(config, config.parsed_methods(), "both")
    starts = {cell.method.name: build_task(cell.config, CLASSES).student.state_dict() for cell in cells}
    head = [name for name in starts["none"] if "head" in name and "weight" in name]
    assert head
    for name in methods[:3]:
        assert all(torch.equal(value, starts["inherit"][key]) for key, value in starts[name].items())
        assert not any(torch.equal(starts[name][key], starts["none"][key]) for key in head if starts[name][key].std())
    [only] = [cell for cell in cells if cell.method.name == "inherit"]
    assert only.method.variant
    assert [stage.teacher for stage in only.config.stages] == [None]
    assert only.run == tmp_path / "both" / "inherit" / "seed-0"
    without, _ = make_cells(
        compare_config(tmp_path / "o", pairs=pairs, methods=methods), config.parsed_methods(), "both"
    )
    assert [cell.config.ancestor for cell in without] == [None, str(tmp_path / "own_kind"), None, None]

    other = compare_config(tmp_path, pairs=pairs, methods=methods, inherit=2)
    tasks, skipped = build_tasks(other, make_cells(other, other.parsed_methods(), "both")[0], CLASSES)
    assert list(tasks) == ["none"]
    assert all(entry.reason.startswith("inherit: ") for entry in skipped)


def test_a_teacher_that_is_not_there_is_an_error(compare_config: MakeCompare, tmp_path: Path) -> None:
    config = compare_config(tmp_path, pairs={"none_there": [str(tmp_path / "nowhere")]})
    cells, _ = make_cells(config, config.parsed_methods(), "none_there")
    with pytest.raises(DfmsdError, match="no detector at"):
        build_tasks(config, cells, CLASSES)


def test_a_folder_with_another_run_is_refused(compare_config: MakeCompare, tmp_path: Path) -> None:
    config = compare_config(tmp_path)
    cells, _ = make_cells(config, config.parsed_methods(), "both")
    cells[1].run.mkdir(parents=True)
    write_config(cells[1].config, cells[1].run)
    make_cells(config, config.parsed_methods(), "both")
    changed = compare_config(tmp_path, epochs=3)
    with pytest.raises(DfmsdError, match=r"pkd/seed-0 holds another run than this config describes"):
        make_cells(changed, changed.parsed_methods(), "both")


def test_a_finished_run_stays_what_it_was_when_a_default_of_its_loss_changes(
    compare_config: MakeCompare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but one from before options were written out, of which nobody can tell: it counts."""
    config = compare_config(tmp_path, methods=["dfmsd"])
    cells, _ = make_cells(config, config.parsed_methods(), "both")
    cell = cells[1]
    cell.run.mkdir(parents=True)
    write_config(cell.config, cell.run)
    (cell.run / "metrics.json").write_text("{}")

    @dataclass(frozen=True)
    class Younger(DFMSDOptions):
        ratio: float = 0.4

    monkeypatch.setattr(DFMSD, "Options", Younger)
    with pytest.raises(DfmsdError, match=r"dfmsd/seed-0 holds another run than this config describes"):
        make_cells(config, config.parsed_methods(), "both")
    same = compare_config(tmp_path, methods=["dfmsd"], loss_options={"dfmsd": {"ratio": 0.5}})
    assert make_cells(same, same.parsed_methods(), "both")[0][1].finished

    older = {**RunFolder(cell.run).read_config(), "loss": {"name": "dfmsd"}}
    (cell.run / "config.yaml").write_text(yaml.safe_dump(older))
    assert make_cells(config, config.parsed_methods(), "both")[0][1].finished


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"methods": []}, "methods and seeds: give at least one"),
        ({"seeds": []}, "methods and seeds: give at least one"),
        ({"pairs": {}}, "pairs: none is given"),
        ({"pairs": {"a/b": ["t"]}}, "'a/b' is no name"),
        ({"pairs": {"none": ["t"]}}, "'none' is no name"),
        ({"pairs": {"a": []}}, r"pairs\.a: give one or more teachers"),
        ({"pairs": {"a": ["t", "t"]}}, r"pairs\.a: .*each once"),
        ({"methods": ["pkdd"]}, r"did you mean pkd\?"),
        ({"inherit": 3}, r"inherit: there is no T3 in pairs\.both; give 1 to 2"),
        ({"loss_options": {"pkdd": {}}}, r"loss_options\.pkdd: unknown loss"),
        ({"loss_options": {"mgd": {"ratoi": 1}}}, "no option of mgd; did you mean 'ratio'"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    compare_config: MakeCompare, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(DfmsdError, match=message):
        compare_config(tmp_path, **values)
