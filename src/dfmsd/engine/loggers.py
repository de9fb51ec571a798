"""Experiment loggers: TensorBoard, Weights & Biases and MLflow, all stored in the run folder by default."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from uuid import uuid4

from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from dfmsd.engine.runconfig import LoggerName
from dfmsd.runfolder import RunFolder
from dfmsd.utils.console import quiet
from dfmsd.utils.extras import check_extra
from dfmsd.utils.files import write_json

PROJECT = "dfmsd"
PACKAGES: dict[LoggerName, tuple[str, ...]] = {"wandb": ("wandb",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}


def check_loggers(names: Sequence[LoggerName]) -> None:
    """Refuse loggers whose packages are missing.

    Raises:
        DfmsdError: names the extra to install.
    """
    for name in names:
        check_extra(f"logger: {name}", PACKAGES.get(name, ()), name)


def build_loggers(names: Sequence[LoggerName], run: Path, step: int | None) -> list[Logger]:
    """Build the loggers of a run, and log its config with each new one.

    Args:
        names: loggers, each once.
        run: run folder, which holds the config.
        step: where a resumed run continues.
    """
    file = RunFolder(run).loggers_file
    ids = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    with quiet():  # MLflow reports how it creates its tables
        loggers = {name: _BUILDERS[name](run, step, ids.get(name)) for name in names}
        _register(loggers, RunFolder(run), ids)
    return list(loggers.values())


@rank_zero_only
def _register(loggers: Mapping[LoggerName, Logger], run: RunFolder, ids: Mapping[str, str]) -> None:
    for name, logger in loggers.items():
        if name not in ids:  # MLflow refuses to change parameters
            logger.log_hyperparams(run.read_config())
    current = {name: str(logger.version) for name, logger in loggers.items() if name in PACKAGES}
    if current:
        write_json(run.loggers_file, {**ids, **current})


class _WandbLogger(WandbLogger):
    """End the W&B run with the training, so that a student's curves do not continue its teacher's."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.finish(exit_code=int(status != "success"))


def _tensorboard(run: Path, step: int | None, _: str | None) -> Logger:
    return TensorBoardLogger(run, name="tensorboard", version="", purge_step=step, default_hp_metric=False)


def _wandb(run: Path, _: int | None, run_id: str | None) -> Logger:
    import wandb

    return _WandbLogger(
        name=run.name,
        save_dir=run,
        version=run_id or uuid4().hex[:8],
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        mode=os.environ.get("WANDB_MODE", "offline"),
        settings=wandb.Settings(console="off"),  # it would take the terminal away from the dashboard
    )


def _mlflow(run: Path, _: int | None, run_id: str | None) -> Logger:
    return MLFlowLogger(
        experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT),
        run_name=run.name,
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run.resolve()}/mlflow.db",
        run_id=run_id,
    )


_BUILDERS: dict[LoggerName, Callable[[Path, int | None, str | None], Logger]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
