from __future__ import annotations

import json
import re
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.command import STUDENT, Command

from dfmsd.detectors import Detector, DetectorConfig, build_detector, load_detector, save_detector
from dfmsd.engine import run as engine
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.configfile import read_config
from dfmsd.engine.interrupt import StopOnInterrupt
from dfmsd.errors import DfmsdError
from dfmsd.tuning.config import TuneConfig


def change(content: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return a copy in which a key such as ``a.b`` is set."""
    copied: dict[str, Any] = json.loads(json.dumps(content))
    *parents, last = key.split(".")
    part: Any = copied
    for parent in parents:
        part = part[int(parent) if parent.isdigit() else parent]
    part[last] = value
    return copied


def copy_data(tiny_root: Path, folder: Path) -> Path:
    shutil.copytree(tiny_root, folder)
    return folder / "annotations" / "instances_train.json"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.root", "nowhere", "data.root: no folder .*nowhere; give the folder of a data set"),
        ("data.rot", "x", r"unknown key data\.rot; did you mean data\.root\?; see dfmsd distill --help"),
        ("student.backbon", "x", r"unknown key student\.backbon; did you mean student\.backbone\?"),
        ("stages.0.epoch", 3, r"unknown key epoch; did you mean epochs\?"),
        ("stags", [], r"unknown key stags; did you mean stages\?"),
        ("optim.schedule", "soon", r"optim\.schedule.*'restart', 'continuous'"),
        ("student.backbone", "resnet19", "unknown backbone 'resnet19': did you mean .*resnet18"),
        ("loss", {"name": "mgdd"}, "loss.name: unknown loss 'mgdd'; the losses are .*dfmsd"),
        ("loss", {"alfa": 2.0}, "loss.alfa: dfmsd has no such option; did you mean alpha"),
        ("stages.0.teacher", "runs/none", "no detector at 'runs/none'"),
        ("stages.1.teacher", "none.yaml", r"none\.yaml: .*does not exist"),
        ("stages.1.loss", {"pairing": "stride", "weight": 0}, r"stages\.1: loss\.weight must be above 0"),
        ("stages", [], "stages: the list is empty"),
        ("balance", -1.0, "balance must be above 0"),
        ("optim.lr", 0.0, "optim.lr must be above 0"),
        ("seed", -1, "seed must be in 0..4294967295, got -1"),
    ],
)
def test_a_bad_config_is_refused(dfmsd: Command, content: dict[str, Any], key: str, value: Any, message: str) -> None:
    file = dfmsd.write("bad.yaml", change(content, key, value))
    assert re.search(message, dfmsd.refusal("distill", "--config", file))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--student.backbone", "resnet19"], "unknown backbone 'resnet19'"),
        (["--student.backbon", "resnet18"], "student.backbon"),
        (["--stages.5.epochs", "1"], r"--stages\.5\.epochs: stages has 2 entries, counted from 0"),
        (["--stages.1.epochs"], r"--stages\.1\.epochs: its value is missing"),
        (["--loss.name", "mgdd"], "unknown loss 'mgdd'"),
        (["--resume"], "run holds no run, so there is nothing to resume"),
        (["--resume", "--overwrite"], "pass one of them"),
        (["--check-images", "0"], "check_images must be at least 1, got 0"),
    ],
)
def test_a_bad_flag_is_refused(dfmsd: Command, config: str, arguments: list[str], message: str) -> None:
    assert re.search(message, dfmsd.refusal("distill", "--config", config, *arguments))


def test_annotations_without_categories_are_refused(dfmsd: Command, config: str, tiny_root: Path) -> None:
    file = copy_data(tiny_root, dfmsd.folder / "data")
    raw = json.loads(file.read_text())
    del raw["categories"]
    file.write_text(json.dumps(raw))
    assert f"{file.name}: no list `categories`" in dfmsd.refusal("distill", "--config", config, "--data.root", "data")


def test_a_missing_image_is_refused(dfmsd: Command, config: str, tiny_root: Path) -> None:
    copy_data(tiny_root, dfmsd.folder / "data")
    (dfmsd.folder / "data" / "train" / "train_3.jpg").unlink()
    error = dfmsd.refusal("distill", "--config", config, "--data.root", "data")
    assert "1 of the 8 images" in error
    assert "train_3.jpg" in error


def test_a_teacher_with_other_classes_is_refused(dfmsd: Command, config: str) -> None:
    save_detector(build_detector(DetectorConfig(**STUDENT), ["cat", "dog"]), dfmsd.folder / "dogs")  # type: ignore[arg-type]
    error = dfmsd.refusal("distill", "--config", config, "--stages.1.teacher", "dogs")
    assert "teacher dogs knows none of the data's classes square, disc; it knows cat, dog" in error


def test_a_teacher_that_is_not_a_checkpoint_is_refused(dfmsd: Command, config: str) -> None:
    (dfmsd.folder / "teacher.pt").write_bytes(b"\x80\x04no weights")
    error = dfmsd.refusal("distill", "--config", config, "--stages.0.teacher", "teacher.pt")
    assert "teacher.pt is not a checkpoint of dfmsd" in error


def test_an_untrained_teacher_is_refused(dfmsd: Command, config: str, tiny_teachers: tuple[str, str]) -> None:
    error = dfmsd.refusal("distill", "--config", config)
    assert f"teacher {tiny_teachers[0]} measures AP" in error
    assert "pass --allow-weak-teacher" in error


def test_pyramids_without_a_common_stride_are_refused(
    dfmsd: Command, config: str, tiny_teachers: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(reference: str) -> Detector:
        detector = load_detector(reference)
        detector.levels = tuple(level._replace(stride=100 * level.stride, sizes=None) for level in detector.levels)
        return detector

    monkeypatch.setattr("dfmsd.engine.teachers.load_detector", load)
    error = dfmsd.refusal("distill", "--config", config)
    assert f"stage 1, teacher {tiny_teachers[0]}: " in error
    assert "stride" in error


def test_an_existing_run_is_refused(dfmsd: Command, config: str) -> None:
    (dfmsd.folder / "run").mkdir()
    shutil.copy(dfmsd.folder / config, dfmsd.folder / "run" / "config.yaml")
    error = dfmsd.refusal("distill", "--config", config)
    assert "run already holds a run; pass --resume, --overwrite or another --out" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "pkdd"], r"methods: 'pkdd', position 1: unknown loss 'pkdd'; did you mean pkd\?"),
        (["--methods", "pkd,dfmsd[ratoi=0]"], "dfmsd has no such option; did you mean ratio"),
        (["--seeds", "0,x"], "seeds"),
        (["--method", "pkd"], "method"),
        (["--jobs", "0"], "jobs must be at least 1, got 0"),
        (["--pairs", '{"strong": ["nowhere"]}'], "no detector at 'nowhere'"),
        (["--student.backbon", "x"], r"unrecognized arguments: --student\.backbon"),
    ],
)
def test_a_bad_comparison_is_refused(dfmsd: Command, comparison: str, arguments: list[str], message: str) -> None:
    assert re.search(message, dfmsd.refusal("compare", "--config", comparison, *arguments))


def test_compare_takes_lists_of_methods_and_seeds(
    dfmsd: Command, comparison: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dfmsd.comparison import runner
    from dfmsd.comparison.config import CompareConfig
    from dfmsd.comparison.results import PairResults

    seen: list[tuple[CompareConfig, dict[str, Any]]] = []

    def compare(given: CompareConfig, **options: Any) -> list[PairResults]:
        seen.append((given, options))
        return [PairResults("pair", {}, failed={"x": "why"} if options["jobs"] == 3 else {})]

    monkeypatch.setattr(runner, "compare", compare)
    methods = "none,dfmsd[beta=0,ratio=0.5]@T1+T2,pkd+mgd"
    given = ["compare", "--config", comparison, "--methods", methods, "--seeds=3,4", "--optim.lr", "0.5"]
    assert dfmsd(*given, "--jobs", "2")[0] == 0
    assert dfmsd(*given, "--jobs", "3", "--dry-run", "--allow-weak-teacher")[0] == 1  # a run has failed
    config, options = seen[0]
    assert config.methods == ["none", "dfmsd[beta=0,ratio=0.5]@T1+T2", "pkd+mgd"]
    assert (config.seeds, config.optim.lr, config.epochs) == ([3, 4], 0.5, 2)
    assert options == {"jobs": 2, "allow_weak_teacher": False, "dry_run": False}
    assert seen[1][1] == {"jobs": 3, "allow_weak_teacher": True, "dry_run": True}
    assert dfmsd("compare", "--config", comparison, "--seeds", "7")[0] == 0
    assert (seen[2][0].seeds, seen[2][0].methods) == ([7], ["pkd"])


def test_flags_set_every_key_of_the_config(
    dfmsd: Command, config: str, monkeypatch: pytest.MonkeyPatch, tiny_teachers: tuple[str, str]
) -> None:
    seen: list[tuple[DistillConfig, dict[str, Any]]] = []

    def distill(given: DistillConfig, **options: Any) -> None:
        seen.append((given, options))
        raise DfmsdError("that is enough")

    monkeypatch.setattr(engine, "distill", distill)
    flags = "--stages.0.epochs 3 --stages.1.loss.alpha 2 --loss.beta 4 --student.backbone resnet10t --out there"
    dfmsd.refusal("distill", "--config", config, *flags.split(), "--no-distill", "--check-images", "5")
    [(given, options)] = seen
    assert [(stage.teacher, stage.epochs, stage.loss) for stage in given.stages] == [
        (tiny_teachers[0], 3, {}),
        (tiny_teachers[1], 1, {"alpha": 2}),
    ]
    assert given.loss == {"name": "dfmsd", "beta": 4}
    assert (given.student.backbone, given.student.fpn_channels, given.out) == ("resnet10t", 16, "there")
    assert options == {
        "no_distill": True,
        "resume": False,
        "overwrite": False,
        "allow_weak_teacher": False,
        "check_images": 5,
    }


def test_check_prints_the_pre_flight_and_writes_nothing(
    dfmsd: Command, config: str, tiny_teachers: tuple[str, str]
) -> None:
    before = sorted(dfmsd.folder.rglob("*"))
    status, _, err = dfmsd("check", "--config", config, "--allow-weak-teacher")
    assert status == 0
    assert "pre-flight" in err
    assert "p3 (/8, 16) <- p3 (/8, 32)" in " ".join(err.split())
    assert sorted(dfmsd.folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("command", "kind"),
    [("distill --resume", DistillConfig), ("check --rank", DistillConfig), ("tune --jobs 2", TuneConfig)],
)
def test_a_printed_config_is_a_config(dfmsd: Command, config: str, command: str, kind: type[DistillConfig]) -> None:
    status, out, _ = dfmsd(*command.split(), "--config", config, "--stages.0.epochs", 3, "--out", "y", "--print-config")
    assert status == 0
    Path("printed.yaml").write_text(out)
    printed, expected = (read_config(kind, Path(file)) for file in ("printed.yaml", config))
    assert (printed.out, printed.stages[0].epochs) == ("y", 3)
    assert replace(printed, out="run", stages=expected.stages) == expected


@pytest.mark.parametrize("command", [["check"], ["check", "--rank"], ["estimate"]])
def test_a_command_that_writes_no_run_needs_no_folder_for_one(dfmsd: Command, command: list[str]) -> None:
    stages = ["--stages", "[{teacher: nowhere, epochs: 1}]"]
    assert "no detector at 'nowhere'" in dfmsd.refusal(*command, "--data.root", "digits", *stages)
    assert "missing: --out" in dfmsd.refusal("distill", "--data.root", "digits", *stages)


def test_estimate_prints_tables_and_writes_only_the_json(
    dfmsd: Command, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dfmsd.estimation import estimator
    from dfmsd.estimation.schedules import ImageFlops

    monkeypatch.setattr(estimator, "estimate", partial(estimator.estimate, seconds=0))
    monkeypatch.setattr(estimator, "stage_flops", lambda *_: {"student": ImageFlops(1.0, 1.0)})
    before = sorted(dfmsd.folder.rglob("*"))
    status, out, _ = dfmsd("estimate", "--config", config, "--stages.1.epochs", 3, "--json", "new/estimate.json")
    assert status == 0
    for part in ("one step, counted", "parts, timed on this machine", "predicted run", "RTX 4090", "assumptions:"):
        assert part in " ".join(out.split())
    assert sorted(dfmsd.folder.rglob("*")) == sorted(
        [*before, dfmsd.folder / "new", dfmsd.folder / "new" / "estimate.json"]
    )
    written = json.loads((dfmsd.folder / "new" / "estimate.json").read_text())
    assert [stage["epochs"] for stage in written["prediction"]["stages"]] == [1, 3]


def test_an_interrupted_run_exits_with_130_and_can_be_resumed(
    dfmsd: Command, training: str, monkeypatch: pytest.MonkeyPatch, tiny_root: Path
) -> None:
    class Pressing(StopOnInterrupt):
        def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
            if trainer.global_step == 3:
                signal.raise_signal(signal.SIGINT)
            super().on_train_batch_end(trainer, *args, **kwargs)

    run = dfmsd.folder / "run"
    monkeypatch.setattr("dfmsd.engine.fit.StopOnInterrupt", Pressing)
    status, out, err = dfmsd("train", "--config", training, "--epochs", "2")
    assert (status, out) == (130, "")
    assert "interrupted: run/student.safetensors is the student so far" in " ".join(err.split())
    assert (run / "last.ckpt").exists()
    assert not (run / "metrics.json").exists()
    assert not (run / "report.html").exists()
    load_detector(run)

    monkeypatch.setattr("dfmsd.engine.fit.StopOnInterrupt", StopOnInterrupt)
    status, out, _ = dfmsd("train", "--config", training, "--epochs", "2", "--resume")
    assert (status, out) == (0, "run/report.html\n")
    metrics = json.loads((run / "metrics.json").read_text())
    assert "<html" in (run / "report.html").read_text()

    # at the size of the run's own training, without being told
    status, out, _ = dfmsd("evaluate", "--model", "run", "--data", tiny_root, "--out", "found.json")
    assert status == 0
    assert json.loads(out) == json.loads((dfmsd.folder / "found.json").read_text()) == metrics


@pytest.mark.parametrize(
    ("command", "number", "status"),
    [
        ("distill", signal.SIGINT, 130),
        pytest.param("distill", signal.SIGTERM, 75, marks=pytest.mark.slow),
        pytest.param("compare", signal.SIGUSR1, 75, marks=pytest.mark.slow),
    ],
)
def test_a_signal_during_a_teachers_training_ends_the_command_and_the_next_start_continues(
    dfmsd: Command, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch, command: str, number: int, status: int
) -> None:
    steps: list[int] = []

    class Preempting(StopOnInterrupt):
        def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
            steps.append(trainer.global_step)
            if steps == [1]:
                signal.raise_signal(number)

    monkeypatch.setattr("dfmsd.engine.fit.StopOnInterrupt", Preempting)
    shared = {"data": content["data"], "optim": content["optim"]}
    teacher = dfmsd.write("teacher.yaml", {**shared, "model": STUDENT, "epochs": 1, "out": "teacher"})
    pairs = {"pairs": {"one": [teacher]}, "methods": ["pkd"], "out": "table"}
    dfmsd.write("compare.yaml", {**shared, "student": STUDENT, **pairs})
    dfmsd.write("distill.yaml", {**content, "stages": [{"teacher": teacher, "epochs": 1}]})
    ended, out, err = dfmsd(command, "--config", f"{command}.yaml")
    assert ended == status
    assert f"teacher {teacher} is not finished: run the same command again to continue it" in " ".join(
        (out + err).split()
    )
    assert not (dfmsd.folder / "run").exists()

    flags = ("--allow-weak-teacher", "--check-images", 1)
    assert dfmsd("distill", "--config", "distill.yaml", *flags)[0] == 0
    assert steps == [1, 2, 1, 2]  # the teacher's second step, then the student's
