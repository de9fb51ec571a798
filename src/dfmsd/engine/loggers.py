"""What draws a run's curves: TensorBoard, Weights & Biases, MLflow. All of it stays in the run folder by default."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from uuid import uuid4

from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from dfmsd.engine.config import LoggerName
from dfmsd.runfolder import RunFolder
from dfmsd.utils.console import quiet
from dfmsd.utils.extras import check_extra
from dfmsd.utils.files import write_json

PROJECT = "dfmsd"
IDS = "loggers.json"
"""File of a run folder: under which ids its curves are kept, for a resumed run to go on with them."""
PACKAGES: dict[LoggerName, tuple[str, ...]] = {"wandb": ("wandb",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}


def check_loggers(names: Sequence[LoggerName]) -> None:
    """Refuse loggers whose packages are missing.

    Raises:
        DfmsdError: says which extra has them.
    """
    for name in names:
        check_extra(f"logger: {name}", PACKAGES.get(name, ()), name)


def build_loggers(names: Sequence[LoggerName], run: Path, step: int | None) -> list[Logger]:
    """Open the curves of a run, and note its ``config.yaml`` there.

    Args:
        names: each once.
        run: its folder, which has the config.
        step: that a resumed run goes on from.
    """
    ids = json.loads((run / IDS).read_text(encoding="utf-8")) if (run / IDS).exists() else {}
    with quiet():  # MLflow tells how it makes its tables
        loggers = {name: _BUILDERS[name](run, step, ids.get(name)) for name in names}
        _introduce(loggers, run, ids)
    return list(loggers.values())


@rank_zero_only
def _introduce(loggers: Mapping[LoggerName, Logger], run: Path, ids: Mapping[str, str]) -> None:
    for name, logger in loggers.items():
        if name not in ids:  # MLflow refuses to change what it knows
            logger.log_hyperparams(RunFolder(run).read_config())
    now = {name: str(logger.version) for name, logger in loggers.items() if name in PACKAGES}
    if now:
        write_json(run / IDS, {**ids, **now})


class _WandbLogger(WandbLogger):
    """One whose run ends with the training: a student's curves do not go on in those of its teacher."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.finish(exit_code=int(status != "success"))


def _tensorboard(run: Path, step: int | None, _: str | None) -> Logger:
    return TensorBoardLogger(run, name="tensorboard", version="", purge_step=step, default_hp_metric=False)


def _wandb(run: Path, _: int | None, known: str | None) -> Logger:
    import wandb

    return _WandbLogger(
        name=run.name,
        save_dir=run,
        version=known or uuid4().hex[:8],
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        mode=os.environ.get("WANDB_MODE", "offline"),
        settings=wandb.Settings(console="off"),  # which would take the terminal away from the dashboard
    )


def _mlflow(run: Path, _: int | None, known: str | None) -> Logger:
    return MLFlowLogger(
        experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT),
        run_name=run.name,
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run.resolve()}/mlflow.db",
        run_id=known,
    )


_BUILDERS: dict[LoggerName, Callable[[Path, int | None, str | None], Logger]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
