"""Run folders: the names of their files, and what those files hold."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dfmsd.errors import DfmsdError, listed

WEIGHTS_NAME = "student.safetensors"
"""The delivered detector's weights; ``student.json`` next to them describes the model."""
SHOWN = 8
"""Runs that a message lists."""


@dataclass(frozen=True)
class RunFolder:
    """The files of one run, whether it has finished or not.

    Args:
        path: the folder; it need not exist.
    """

    path: Path

    def __post_init__(self) -> None:
        """Accept a string for the path."""
        object.__setattr__(self, "path", Path(self.path))

    def __str__(self) -> str:
        return str(self.path)

    @property
    def config_file(self) -> Path:
        """The resolved config that the run was started with."""
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        """COCO metrics of the delivered detector; written last, so that it marks a finished run."""
        return self.path / "metrics.json"

    @property
    def average_metrics_file(self) -> Path:
        """COCO metrics of the averaged weights, if the run chose between them and the last ones."""
        return self.path / "average_metrics.json"

    @property
    def test_metrics_file(self) -> Path:
        """COCO metrics of the delivered detector on the test split, if the data have one."""
        return self.path / "test_metrics.json"

    @property
    def log_file(self) -> Path:
        """Named losses of every step."""
        return self.path / "log.csv"

    @property
    def epochs_file(self) -> Path:
        """Metrics of every evaluation."""
        return self.path / "epochs.csv"

    @property
    def basis_file(self) -> Path:
        """Correlations before and after the rotations into another basis, per stage."""
        return self.path / "basis.json"

    @property
    def pseudo_file(self) -> Path:
        """Boxes that a teacher gave to unlabeled images, a COCO file; there only if the run trains on such."""
        return self.path / "pseudo_labels.json"

    @property
    def environment_file(self) -> Path:
        """Versions, machine and parameter counts."""
        return self.path / "environment.json"

    @property
    def weights_file(self) -> Path:
        """The delivered detector's weights."""
        return self.path / WEIGHTS_NAME

    @property
    def description_file(self) -> Path:
        """The delivered detector's architecture, classes, levels and input size."""
        return self.weights_file.with_suffix(".json")

    @property
    def last_checkpoint(self) -> Path:
        """Where a resumed run continues."""
        return self.path / "last.ckpt"

    @property
    def previous_checkpoint(self) -> Path:
        """The checkpoint before the last one, used where the last one is damaged."""
        return self.path / "previous.ckpt"

    @property
    def best_checkpoint(self) -> Path:
        """The epoch with the highest AP."""
        return self.path / "best.ckpt"

    @property
    def failure_folder(self) -> Path:
        """Values and image ids of the steps whose losses or gradients were not finite."""
        return self.path / "failure"

    @property
    def loggers_file(self) -> Path:
        """Ids of the run in external loggers, so that a resumed run continues their curves."""
        return self.path / "loggers.json"

    @property
    def report_file(self) -> Path:
        """The run's report, one self-contained HTML file."""
        return self.path / "report.html"

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run, finished or not."""
        return self.config_file.exists()

    @property
    def is_foreign(self) -> bool:
        """Whether ``config.yaml`` belongs to something else; a damaged one does unless files of a run lie beside it."""
        try:
            return not {"out", "data"} <= self.read_config().keys()
        except DfmsdError:
            return not (self.environment_file.exists() or self.last_checkpoint.exists())

    @property
    def finished(self) -> bool:
        """Whether the run has delivered its detector and metrics."""
        return self.metrics_file.exists()

    def read_config(self) -> dict[str, Any]:
        """Read ``config.yaml`` without checking its keys.

        Raises:
            DfmsdError: the file is missing, is not valid YAML, or holds no keys.
        """
        file = self.config_file
        try:
            config: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
            raise DfmsdError(f"{file} is damaged ({type(error).__name__}); restore it, or remove the folder") from error
        if not isinstance(config, dict):
            raise DfmsdError(f"{file} is damaged (no keys in it); restore it, or remove the folder")
        return config

    def read_metrics(self) -> dict[str, Any] | None:
        """Read the metrics, or return None where the run is not finished."""
        return _read_json(self.metrics_file)

    def read_average_metrics(self) -> dict[str, Any] | None:
        """Read the metrics of the averaged weights, or return None where the run did not choose."""
        return _read_json(self.average_metrics_file)

    def read_test_metrics(self) -> dict[str, Any] | None:
        """Read the metrics on the test split, or return None where there are none."""
        return _read_json(self.test_metrics_file)

    def read_description(self) -> dict[str, Any] | None:
        """Read the delivered detector's description, or return None where there is none yet."""
        return _read_json(self.description_file)

    def read_environment(self) -> dict[str, Any] | None:
        """Read versions and parameter counts, or return None where they are missing."""
        return _read_json(self.environment_file)

    def read_basis(self) -> dict[str, Any] | None:
        """Read ``basis.json``: stage -> level -> correlation before and after, and reference; None if it is missing."""
        return _read_json(self.basis_file)

    def image_size(self) -> int | None:
        """Return the image size of the run's training in pixels; None where the folder holds no run.

        Raises:
            DfmsdError: the config does not state it.
        """
        if not self.exists:
            return None
        config = self.read_config()
        try:
            return int(config["data"]["image_size"])
        except (KeyError, TypeError, ValueError) as error:
            raise DfmsdError(
                f"{self.config_file} has no data.image_size; restore it, or use {self.weights_file} with `image_size`"
            ) from error

    def data_root(self) -> str | None:
        """Return the run's data set; None where the folder holds no run.

        Raises:
            DfmsdError: the config does not state it.
        """
        if not self.exists:
            return None
        data = self.read_config().get("data")
        if not isinstance(data, dict) or not isinstance(data.get("root"), str):
            raise DfmsdError(f"{self.config_file} has no data.root; pass `images`")
        return str(data["root"])


def check_run(path: Path, *others: Path, name: str = "") -> None:
    """Refuse a path at which there is no folder, and say which runs there are near it.

    Args:
        path: of a run folder.
        others: runs whose neighbors are named, too.
        name: of the setting, such as ``baseline``, for the message.

    Raises:
        DfmsdError: there is no folder.
    """
    if path.is_dir():
        return
    found = [str(run) for run in _runs_near(path, *others)]
    there = f"there are {listed(found, SHOWN)}" if found else "pass the `out:` of a `dfmsd train` or `dfmsd distill`"
    raise DfmsdError(f"{f'`{name}`: ' if name else ''}no run folder at {path}; {there}")


def _runs_near(*paths: Path) -> list[RunFolder]:
    """Find the runs beside each path, or in the nearest folder above it that exists, and one level below."""
    places = dict.fromkeys(next((above for above in path.parents if above.is_dir()), Path()) for path in paths)
    folders = [RunFolder(path) for place in places for depth in ("*", "*/*") for path in sorted(place.glob(depth))]
    return [run for run in dict.fromkeys(folders) if run.exists and not run.is_foreign]


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DfmsdError(f"{path} is damaged ({error}): remove it, or run again") from error
    if not isinstance(content, dict):
        raise DfmsdError(f"{path} holds a {type(content).__name__}, expected an object: remove it, or run again")
    return content
