from __future__ import annotations

import csv
import json
import struct
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dfmsd.engine import module
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.fit import Result
from dfmsd.engine.interrupt import StopOnInterrupt
from dfmsd.engine.loggers import check_loggers
from dfmsd.engine.run import distill
from dfmsd.engine.saved_config import same_run, write_config
from dfmsd.errors import DfmsdError, Stopped
from dfmsd.runfolder import RunFolder
from dfmsd.utils import extras

MakeDistill = Callable[..., DistillConfig]
Curves = dict[str, dict[int, float]]
KINDS = ("tensorboard", "wandb", "mlflow")
SCORES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_DIR", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "LOG_EVERY", 2)  # epochs are of two steps
    monkeypatch.setattr("dfmsd.engine.fit.LOG_EVERY", 2)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def from_tensorboard(run: Path) -> tuple[Curves, dict[str, Any]]:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    curves = {name: {event.step: event.value for event in events.Scalars(name)} for name in events.Tags()["scalars"]}
    return curves, yaml.safe_load((run / "tensorboard" / "hparams.yaml").read_text())


def from_mlflow(run: Path) -> tuple[Curves, dict[str, Any]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{run}/mlflow.db")
    (experiment,) = [one for one in client.search_experiments() if one.name == "dfmsd"]
    (kept,) = client.search_runs([experiment.experiment_id])
    assert kept.info.status == "FINISHED"
    assert kept.info.run_name == run.name
    names = kept.data.metrics
    curves = {name: {m.step: m.value for m in client.get_metric_history(kept.info.run_id, name)} for name in names}
    return curves, kept.data.params


def records(content: bytes, block: int = 32768) -> Iterator[bytes]:
    """Yield the records of a file in LevelDB's log format, after the seven bytes that W&B puts first."""
    place, record = 7, b""
    while place + 7 <= len(content):
        if block - place % block < 7:
            place += block - place % block
        length, kind = struct.unpack_from("<HB", content, place + 4)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""


def from_wandb(run: Path) -> tuple[Curves, dict[str, Any]]:
    """Read the offline files, one for each start of the run, as `wandb sync` does."""
    from wandb.proto import wandb_internal_pb2

    curves: Curves = {}
    config: dict[str, Any] = {}
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    assert files
    for file in files:
        for data in records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            for part in (record.run.config, record.config):
                config |= {one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in part.update}
            values = {one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in record.history.item}
            for name, value in values.items():
                if "trainer/global_step" in values and not name.startswith(("_", "trainer/")):
                    curves.setdefault(name, {})[values["trainer/global_step"]] = value
    return curves, config


def check_curves(curves: Curves, run: Path) -> None:
    """Compare curves with the run's tables."""
    rows = [row for row in table(run / "log.csv") if (int(row["step"]) + 1) % 2 == 0]
    assert len(rows) == 3
    for name in rows[0].keys() - {"step", "epoch", "stage"}:
        expected = {int(row["step"]): float(row[name]) for row in rows if row[name]}
        assert expected == pytest.approx(curves[name], rel=1e-5), name
    scores = table(run / "epochs.csv")
    assert len(scores) == 3
    for name in SCORES:
        expected = [float(row[name]) for row in scores if row[name]]
        assert expected == pytest.approx([curves.get(name, {})[step] for step in sorted(curves.get(name, {}))]), name
    assert any("pearson/" in name for name in curves)
    assert {"lr", "loss"} <= curves.keys()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS[1:])
def test_every_logger_stores_the_curves_in_the_run_folder_and_continues_them(
    kind: str, distill_config: MakeDistill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(kind, reason=f"needs pip install 'dfmsd[{kind}]'")
    monkeypatch.chdir(tmp_path)
    config = distill_config(tmp_path / "run", logger=["tensorboard", kind])
    plain = distill(distill_config(tmp_path / "plain"), allow_weak_teacher=True, check_images=1).run
    with monkeypatch.context() as patched:
        patched.setattr(StopOnInterrupt, "on_train_batch_end", _stopping_at(3))
        with pytest.raises(Stopped):
            distill(config, allow_weak_teacher=True, check_images=1)
    run = distill(config, resume=True, allow_weak_teacher=True).run
    curves, hyperparameters = {"wandb": from_wandb, "mlflow": from_mlflow}[kind](run)
    check_curves(curves, run)
    check_curves(from_tensorboard(run)[0], run)
    assert str(hyperparameters["seed"]) == "0"
    written = yaml.safe_load((run / "config.yaml").read_text())
    lr = hyperparameters["optim"]["lr"] if kind == "wandb" else hyperparameters["optim/lr"]
    assert float(lr) == written["optim"]["lr"]
    weights, alone = (load_file(folder / "student.safetensors") for folder in (run, plain))
    assert all((weights[name] == value).all() for name, value in alone.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain", "run"]


def _stopping_at(step: int) -> Callable[..., None]:
    def stop(self: Any, trainer: Any, *_: Any, **__: Any) -> None:
        self.asked = 130 if trainer.global_step == step else 0

    return stop


def test_tensorboard_is_the_default_and_has_losses_correlations_rates_and_scores(
    distilled: Result,
) -> None:
    run = distilled.run
    curves, hyperparameters = from_tensorboard(run)
    check_curves(curves, run)
    assert hyperparameters == yaml.safe_load((run / "config.yaml").read_text())
    assert not RunFolder(run).loggers_file.exists()


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_missing_extra_is_refused_before_a_folder_is_created(
    kind: str, distill_config: MakeDistill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == kind else find_spec("json"))
    config = distill_config(tmp_path / "run", logger=kind)
    with pytest.raises(DfmsdError) as caught:
        distill(config)
    assert str(caught.value) == f"logger: {kind} needs {kind}: pip install 'dfmsd[{kind}]'"
    assert not (tmp_path / "run").exists()


def test_a_folder_named_like_the_package_is_not_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: ModuleSpec(name, None))
    with pytest.raises(DfmsdError, match="logger: wandb needs wandb"):
        check_loggers(["wandb"])
    check_loggers(["tensorboard"])


def test_an_unknown_logger_is_refused(distill_config: MakeDistill, tmp_path: Path) -> None:
    with pytest.raises(DfmsdError, match=r"logger.1 must be one of tensorboard, wandb, mlflow, got 'trackio'"):
        distill_config(tmp_path, logger=["tensorboard", "trackio"])


def test_each_logger_counts_once(distill_config: MakeDistill, tmp_path: Path) -> None:
    assert distill_config(tmp_path, logger="mlflow").loggers == ["mlflow"]
    assert distill_config(tmp_path, logger=["wandb", "mlflow", "wandb"]).loggers == ["wandb", "mlflow"]
    assert distill_config(tmp_path, logger=[]).loggers == []


def test_a_run_may_be_resumed_with_another_logger(distill_config: MakeDistill, tmp_path: Path) -> None:
    write_config(distill_config(tmp_path), tmp_path)
    assert same_run(distill_config(tmp_path, logger=["tensorboard", "mlflow"]), tmp_path)
    assert not same_run(distill_config(tmp_path, logger="mlflow", seed=1), tmp_path)
