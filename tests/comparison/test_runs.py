from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from tests.helpers.fixtures import STUDENT

from dfmsd.comparison.config import CompareConfig
from dfmsd.comparison.methods import parse_method
from dfmsd.comparison.runs import build_tasks, plan_runs
from dfmsd.comparison.teachers import measure_teachers
from dfmsd.data import CocoDataModule
from dfmsd.data.pseudo import PseudoConfig
from dfmsd.detectors import DetectorConfig, build_detector, save_detector
from dfmsd.engine.run import build_task
from dfmsd.engine.saved_config import write_config
from dfmsd.errors import DfmsdError
from dfmsd.losses import DFMSD, DFMSDOptions
from dfmsd.runfolder import RunFolder

MakeCompare = Callable[..., CompareConfig]
CLASSES = ("square", "disc")
METHODS = ["none", "pkd", "pkd+mgd", "dfmsd", "dfmsd@T1+T2", "dfmsd@T2+T2", "dfmsd@T1:1+T2:7", "dfmsd@T1&T2"]
METHODS += ["dfmsd@T1[labels=false]+T2"]


def test_every_method_has_the_same_budget(compare_config: MakeCompare, tmp_path: Path) -> None:
    config = compare_config(tmp_path, methods=METHODS, seeds=[0, 3], epochs=11)
    runs, skipped = plan_runs(config, config.parsed_methods(), "both")
    assert not skipped
    assert len(runs) == 2 * len(METHODS)
    assert {run.config.epochs for run in runs} == {11}
    assert [run.config.seed for run in runs] == [0] * len(METHODS) + [3] * len(METHODS)
    assert len({run.folder.path for run in runs}) == len(runs)
    for run in runs:
        assert run.config.optim == replace(config.optim, name="lamb", lr=2e-2 * (4 / 8) ** 0.5)
        assert run.config.data == config.data
        assert run.config.deliver == "last"


def test_every_method_delivers_the_same_weights(compare_config: MakeCompare, tmp_path: Path) -> None:
    config = compare_config(tmp_path, methods=METHODS, deliver="auto", ema=0.99)
    runs, _ = plan_runs(config, config.parsed_methods(), "both")
    assert {(run.config.deliver, run.config.ema) for run in runs} == {("auto", 0.99)}
    config = compare_config(tmp_path, deliver="best", eval_every=9)
    with pytest.raises(DfmsdError, match=r"^deliver: best chooses among evaluated epochs"):
        plan_runs(config, config.parsed_methods(), "both")


def test_baseline_does_not_use_unlabeled_images(compare_config: MakeCompare, tmp_path: Path) -> None:
    config = compare_config(tmp_path, methods=["none", "pkd", "dfmsd@T1+T2"])
    config = replace(config, data=replace(config.data, unlabeled="images"))
    runs, _ = plan_runs(config, config.parsed_methods(), "both")
    expected = {"none": None, "pkd": "images", "dfmsd@T1+T2": "images"}
    assert {run.method.name: run.config.data.unlabeled for run in runs} == expected


def test_pseudo_labels_of_one_teacher_are_in_all_runs(compare_config: MakeCompare, tmp_path: Path) -> None:
    config = compare_config(tmp_path, methods=["none", "pkd", "dfmsd@T1+T2"])
    config = replace(config, data=replace(config.data, unlabeled="images", pseudo=PseudoConfig("auto")))
    runs, _ = plan_runs(config, config.parsed_methods(), "both")
    assert {run.config.data.unlabeled for run in runs} == {"images"}
    assert {run.config.labeler for run in runs} == {config.pairs["both"][-1]}
    with pytest.raises(DfmsdError, match=r"^data.pseudo.teacher: the pairs share the baseline, so one teacher labels"):
        replace(config, data=replace(config.data, pseudo=PseudoConfig("auto")), pairs={"a": ["x"], "b": ["y"]})


def test_augmentation_that_no_cache_can_serve_is_no_matter_without_teachers(
    compare_config: MakeCompare, tmp_path: Path
) -> None:
    config = compare_config(tmp_path, methods=["none"], teacher_cache="disk")
    config = replace(config, data=replace(config.data, augment="strong"))
    runs, _ = plan_runs(config, config.parsed_methods(), "both")
    assert {run.config.data.augment for run in runs} == {"strong"}
    with pytest.raises(DfmsdError, match=r"teacher_cache: data.scale_jitter changes the pixels"):
        plan_runs(config, [parse_method("pkd")], "both")


def test_teachers_are_cached_on_disk_where_the_augmentation_allows_it(
    compare_config: MakeCompare, tmp_path: Path
) -> None:
    config = compare_config(tmp_path, methods=["pkd"], teacher_cache="auto")
    caches = {}
    for augment, pool in [("light", None), ("strong", None), ("strong", 4)]:
        changed = replace(config, data=replace(config.data, augment=augment, augment_pool=pool))
        runs, _ = plan_runs(changed, [parse_method("pkd")], "both")
        caches[augment, pool] = runs[0].config.teacher_cache
    assert caches == {("light", None): "disk", ("strong", None): None, ("strong", 4): "disk"}


def test_balance_per_method(compare_config: MakeCompare, tmp_path: Path) -> None:
    methods = ["none", "pkd", "pkd[weight=2]@T1+T2", "mgd", "pkd+mgd"]
    config = compare_config(tmp_path, methods=methods, balance=40.0, balances={"pkd": 4.0, "pkd+mgd": 9.0})
    runs, _ = plan_runs(config, config.parsed_methods(), "both")
    expected = {"none": None, "pkd": 4.0, "pkd[weight=2]@T1+T2": 4.0, "mgd": 40.0, "pkd+mgd": 9.0}
    assert {run.method.name: run.config.balance for run in runs} == expected


@pytest.mark.parametrize("family", ["pkd[weight=2]", "pkd@T1", "pdk"])
def test_balances_must_name_losses(compare_config: MakeCompare, tmp_path: Path, family: str) -> None:
    with pytest.raises(DfmsdError, match=family.replace("[", "\\[")):
        compare_config(tmp_path, balances={family: 4.0})


def test_methods_share_initial_weights_and_batches(compare_config: MakeCompare, tmp_path: Path) -> None:
    config = compare_config(tmp_path, methods=METHODS, seeds=[5])
    runs, _ = plan_runs(config, config.parsed_methods(), "both")
    starts = []
    for run in runs:
        weights = build_task(run.config, CLASSES).student.state_dict()
        batch = next(iter(CocoDataModule(run.config.data, seed=run.config.seed).train_dataloader()))
        starts.append((weights, batch.images, batch.image_ids))
    for weights, images, ids in starts[1:]:
        assert all(torch.equal(value, starts[0][0][name]) for name, value in weights.items())
        assert torch.equal(images, starts[0][1])
        assert ids == starts[0][2]


def test_pairs_share_the_baseline(compare_config: MakeCompare, tmp_path: Path, tiny_teachers: tuple[str, str]) -> None:
    pairs = {"both": list(tiny_teachers), "one": [tiny_teachers[0]]}
    config = compare_config(tmp_path, pairs=pairs, methods=["pkd", "dfmsd@T1+T2", "pkd@T1&T2"])
    both, one = (plan_runs(config, config.parsed_methods(), pair) for pair in pairs)
    assert [run.method.name for run in both[0]] == [
        "none",
        "pkd",
        "dfmsd@T1+T2",
        "pkd@T1&T2",
    ]  # the baseline is added
    assert both[0][0].config == one[0][0].config
    assert both[0][1].folder.path == tmp_path / "both" / "pkd" / "seed-0"
    assert both[0][1].config.stages[0].teacher == tiny_teachers[1]
    assert one[0][1].config.stages[0].teacher == tiny_teachers[0]
    assert [(skipped.method.name, skipped.reason) for skipped in one[1]] == [
        ("dfmsd@T1+T2", "needs T2, the pair has 1 teacher(s)"),
        ("pkd@T1&T2", "needs T2, the pair has 1 teacher(s)"),
    ]
    assert both[0][3].config.stages[0].teachers == tiny_teachers
    assert both[0][3].folder.path == tmp_path / "both" / "pkd@T1_T2" / "seed-0"


def test_inapplicable_method_is_skipped(compare_config: MakeCompare, tmp_path: Path) -> None:
    config = compare_config(tmp_path, methods=["pkd", "crosskd"])
    runs, _ = plan_runs(config, config.parsed_methods(), "both")
    tasks, skipped = build_tasks(config, runs, CLASSES)
    assert list(tasks) == ["none", "pkd"]
    [refused] = skipped
    assert refused.method.name == "crosskd"
    assert "head" in refused.reason
    students = [task.student for _, task in tasks.values()]
    assert students[0] is students[1]


def test_all_students_but_the_baseline_inherit(
    compare_config: MakeCompare, tmp_path: Path, tiny_teachers: tuple[str, str]
) -> None:
    teacher = DetectorConfig("fcos", "resnet10t", fpn_channels=16, head_convs=1)
    save_detector(build_detector(teacher, CLASSES), tmp_path / "own_kind")
    pairs = {"both": [str(tmp_path / "own_kind"), tiny_teachers[1]]}
    methods = ["inherit", "pkd", "dfmsd@T1+T2", "none"]
    config = compare_config(tmp_path, pairs=pairs, methods=methods, inherit=1)
    runs, _ = plan_runs(config, config.parsed_methods(), "both")
    starts = {run.method.name: build_task(run.config, CLASSES).student.state_dict() for run in runs}
    head = [name for name in starts["none"] if "head" in name and "weight" in name]
    assert head
    for name in methods[:3]:
        assert all(torch.equal(value, starts["inherit"][key]) for key, value in starts[name].items())
        assert not any(torch.equal(starts[name][key], starts["none"][key]) for key in head if starts[name][key].std())
    [only] = [run for run in runs if run.method.name == "inherit"]
    assert only.method.variant
    assert [stage.teacher for stage in only.config.stages] == [None]
    assert only.folder.path == tmp_path / "both" / "inherit" / "seed-0"
    without, _ = plan_runs(
        compare_config(tmp_path / "o", pairs=pairs, methods=methods), config.parsed_methods(), "both"
    )
    assert [run.config.ancestor for run in without] == [None, str(tmp_path / "own_kind"), None, None]

    fitting = compare_config(tmp_path / "a", pairs=pairs, methods=[*methods, "pkd@T2"], inherit="auto")
    runs, _ = plan_runs(fitting, fitting.parsed_methods(), "both")
    assert {run.method.name: run.config.inherit for run in runs} == {
        "none": False,
        "inherit": str(tmp_path / "own_kind"),
        **dict.fromkeys(["pkd", "dfmsd@T1+T2", "pkd@T2"], "auto"),
    }
    assert len(build_tasks(fitting, runs, CLASSES)[0]) == len(runs)  # pkd@T2 inherits nothing, and is no error

    other = compare_config(tmp_path, pairs=pairs, methods=methods, inherit=2)
    tasks, skipped = build_tasks(other, plan_runs(other, other.parsed_methods(), "both")[0], CLASSES)
    assert list(tasks) == ["none"]
    assert all(entry.reason.startswith("inherit: ") for entry in skipped)


def test_missing_teacher_is_an_error(compare_config: MakeCompare, tmp_path: Path) -> None:
    config = compare_config(tmp_path, pairs={"none_there": [str(tmp_path / "nowhere")]})
    runs, _ = plan_runs(config, config.parsed_methods(), "none_there")
    with pytest.raises(DfmsdError, match="no detector at"):
        build_tasks(config, runs, CLASSES)


def test_folder_with_another_run_is_rejected(compare_config: MakeCompare, tmp_path: Path) -> None:
    config = compare_config(tmp_path)
    runs, _ = plan_runs(config, config.parsed_methods(), "both")
    runs[1].folder.path.mkdir(parents=True)
    write_config(runs[1].config, runs[1].folder.path)
    plan_runs(config, config.parsed_methods(), "both")
    changed = compare_config(tmp_path, epochs=3)
    with pytest.raises(
        DfmsdError, match=r"pkd/seed-0 holds another run than this config describes, differing in stages"
    ):
        plan_runs(changed, changed.parsed_methods(), "both")


def test_finished_run_survives_changed_loss_defaults(
    compare_config: MakeCompare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs from before options were saved are accepted, because their options are unknown."""
    config = compare_config(tmp_path, methods=["dfmsd"])
    runs, _ = plan_runs(config, config.parsed_methods(), "both")
    run = runs[1]
    run.folder.path.mkdir(parents=True)
    write_config(run.config, run.folder.path)
    (run.folder.path / "metrics.json").write_text("{}")

    @dataclass(frozen=True)
    class Younger(DFMSDOptions):
        ratio: float = 0.4

    monkeypatch.setattr(DFMSD, "Options", Younger)
    with pytest.raises(
        DfmsdError, match=r"dfmsd/seed-0 holds another run than this config describes, differing in loss"
    ):
        plan_runs(config, config.parsed_methods(), "both")
    same = compare_config(tmp_path, methods=["dfmsd"], loss_options={"dfmsd": {"ratio": 0.5}})
    assert plan_runs(same, same.parsed_methods(), "both")[0][1].finished

    older = {**RunFolder(run.folder.path).read_config(), "loss": {"name": "dfmsd"}}
    (run.folder.path / "config.yaml").write_text(yaml.safe_dump(older))
    assert plan_runs(config, config.parsed_methods(), "both")[0][1].finished


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"methods": []}, "methods and seeds: pass at least one"),
        ({"seeds": []}, "methods and seeds: pass at least one"),
        ({"seeds": [3, 0, 3]}, "seeds: list each once, got 3, 0, 3"),
        ({"epochs": 0}, "^epochs must be at least 1, got 0$"),
        ({"pairs": {}}, "pairs: empty; define"),
        ({"pairs": {"a/b": ["t"]}}, "'a/b' cannot be used"),
        ({"pairs": {"none": ["t"]}}, "'none' cannot be used"),
        ({"pairs": {"a": []}}, r"pairs\.a: list one or more teachers"),
        ({"pairs": {"a": ["t", "t"]}}, r"pairs\.a: .*each once"),
        ({"methods": ["pkdd"]}, r"did you mean pkd\?"),
        ({"inherit": 3}, r"inherit: pairs\.both has no T3; choose from 1 to 2"),
        ({"loss_options": {"pkdd": {}}}, r"loss_options\.pkdd: unknown loss"),
        ({"loss_options": {"mgd": {"ratoi": 1}}}, "mgd has no such option; did you mean ratio"),
    ],
)
def test_invalid_configs_are_rejected(
    compare_config: MakeCompare, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(DfmsdError, match=message):
        compare_config(tmp_path, **values)


def test_the_teachers_of_all_runs_may_see_larger_images(compare_config: MakeCompare, tmp_path: Path) -> None:
    config = compare_config(tmp_path, methods=["none", "pkd"], teacher_size=96)
    (pair,) = list(config.pairs)[:1]
    runs, _ = plan_runs(config, config.parsed_methods(), pair)
    assert {run.method.name: run.config.teacher_size for run in runs} == {"none": None, "pkd": 96}


def test_teachers_with_other_class_names_are_measured_and_compared_by_those_of_the_data(
    compare_config: MakeCompare, tmp_path: Path
) -> None:
    foreign = str(tmp_path / "foreign")
    save_detector(build_detector(replace(STUDENT, backbone="test_resnet"), ["box", "round"]), foreign)
    values: dict[str, Any] = {"pairs": {"alike": [foreign]}, "methods": ["crosskd"]}
    config = compare_config(tmp_path, **values, teacher_classes={"box": "square", "round": "disc"})
    runs, _ = plan_runs(config, config.parsed_methods(), "alike")
    tasks, skipped = build_tasks(config, runs, CLASSES)
    assert "crosskd" in tasks
    assert skipped == []
    data, console = CocoDataModule(config.data), Console(quiet=True)
    measure = partial(measure_teachers, [foreign], data, tmp_path, console, allow_weak=True)
    assert measure(teacher_classes=config.teacher_classes).aps[foreign] is not None
    assert measure(teacher_classes={"box": "disc"}).aps.keys() == {foreign}
    assert len(json.loads((tmp_path / "teachers.json").read_text())) == 2  # measured again
    others = CocoDataModule(replace(config.data, holdout=0.5))
    measure_teachers([foreign], others, tmp_path, console, allow_weak=True)
    assert len(json.loads((tmp_path / "teachers.json").read_text())) == 3  # on other images
    alone = [run for run in runs if not run.method.losses]
    assert build_tasks(config, alone, CLASSES)[0].keys() == {"none"}
    typo = replace(config, teacher_classes={"bux": "disc"})
    for refused in (
        lambda: build_tasks(typo, runs, CLASSES),
        lambda: measure(teacher_classes=typo.teacher_classes),
    ):
        with pytest.raises(DfmsdError, match=r"^teacher_classes: no teacher has a class 'bux'; .* box, round"):
            refused()
