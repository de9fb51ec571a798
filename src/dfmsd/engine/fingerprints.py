"""Fingerprints of what a run depends on besides its config, by which changed data and teachers are noticed.

They are in the run's ``environment.json``, under ``inputs``. Images are known by name and size; no pixel is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from dfmsd.data.datamodule import CocoDataModule
from dfmsd.data.split import DetectionSplit
from dfmsd.data.splitcheck import open_test_split
from dfmsd.detectors import Detector
from dfmsd.distillation.cache import hash_weights
from dfmsd.errors import DfmsdError, listed
from dfmsd.runfolder import RunFolder

Inputs = Mapping[str, str | int]
"""What a run depends on, such as ``data.train`` or ``teacher runs/large`` -> its fingerprint."""

KEY = "inputs"
"""Of the inputs in ``environment.json``."""
PROCESSES = "number of processes"
VAL, TEST = "data.val", "data.test"
SHOWN_INPUTS = 3
"""Inputs that a message names."""


def fingerprint_data(data: CocoDataModule) -> dict[str, str]:
    """Return split -> hash of its class names, file names, sizes, boxes and labels.

    Args:
        data: without pseudo-labels.
    """
    splits = {"data.train": data.labeled, VAL: data.val.coco, TEST: open_test_split(data.config)}
    if data.config.unlabeled is not None:
        splits["data.unlabeled"] = data.unlabeled
    return {name: _fingerprint(split) for name, split in splits.items() if split is not None}


def fingerprint_teachers(teachers: Mapping[str, Detector]) -> dict[str, str]:
    """Return teacher -> hash of its weights.

    Args:
        teachers: by reference.
    """
    return {teacher_key(name): hash_weights(detector) for name, detector in teachers.items()}


def teacher_key(reference: str) -> str:
    """Return the name of a teacher among the inputs."""
    return f"teacher {reference}"


def read_inputs(run: RunFolder) -> dict[str, Any]:
    """Return the inputs of a run; none if it has not begun, or was begun by a version that did not write them.

    Raises:
        DfmsdError: ``environment.json`` is damaged.
    """
    inputs = (run.read_environment() or {}).get(KEY)
    return inputs if isinstance(inputs, dict) else {}


def changed_inputs(former: Inputs, inputs: Inputs) -> list[str]:
    """Return the names of the inputs that differ, among those that both sides know."""
    return [name for name, value in inputs.items() if former.get(name, value) != value]


def refuse_changed(run: RunFolder, former: Inputs, inputs: Inputs) -> None:
    """Refuse to continue a run with other data, teachers or processes than it began with.

    Args:
        run: its folder.
        former: its inputs; the test split may change, since the student is measured on it after training alone.
        inputs: those of today.

    Raises:
        DfmsdError: names what has changed.
    """
    if changed := [name for name in changed_inputs(former, inputs) if name != TEST]:
        raise DfmsdError(
            f"{listed(changed, SHOWN_INPUTS)} changed since {run} began; restore what it began with, or choose another "
            "`out`"
        )


def refuse_outdated(runs: Iterable[RunFolder], inputs: Inputs, remedy: str) -> None:
    """Refuse to reuse runs of other data or teachers.

    Args:
        runs: their folders, whether they have begun or not.
        inputs: those of today; what a run does not depend on is passed over.
        remedy: what to do, unless the new runs get a folder of their own.

    Raises:
        DfmsdError: names the first such run, how many others there are, and what has changed.
    """
    changed = {str(run): names for run in runs if (names := changed_inputs(read_inputs(run), inputs))}
    if changed:
        names = list(dict.fromkeys(name for each in changed.values() for name in each))
        raise DfmsdError(
            f"{listed(list(changed), 1)}: made with another version of {listed(names, SHOWN_INPUTS)}; {remedy}, or "
            "choose another `out`"
        )


def _fingerprint(split: DetectionSplit) -> str:
    # not the folders: the same data may have moved
    names = [path.name for path in split.records.paths]
    content = hashlib.blake2b(repr((split.class_names, names)).encode(), digest_size=16)
    columns = split.records.columns
    for array in (columns.ids, columns.sizes, columns.counts, columns.boxes, columns.labels, *split.truth):
        content.update(array.tobytes())
    return content.hexdigest()
