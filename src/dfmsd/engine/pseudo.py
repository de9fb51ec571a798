"""Pseudo-labels of a run: which detector labels, and when; the first process labels, and the others read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dfmsd.data.datamodule import CocoDataModule
from dfmsd.detectors import Detector
from dfmsd.detectors.classnames import with_names
from dfmsd.detectors.statedict import check_finite
from dfmsd.engine.config import DistillConfig, Recipe
from dfmsd.engine.teachers import FoundTeachers, find_teachers
from dfmsd.errors import DfmsdError
from dfmsd.evaluation.pseudolabels import calibration_images, describe_labels, pseudo_labels
from dfmsd.runfolder import RunFolder
from dfmsd.utils.classes import common_classes, listed
from dfmsd.utils.coerce import AUTO
from dfmsd.utils.console import console
from dfmsd.utils.device import default_device
from dfmsd.utils.distributed import is_first_process


def find_labeler(
    config: DistillConfig,
    data: CocoDataModule,
    teachers: Mapping[str, Detector] | None = None,
    recipes: Mapping[str, Recipe] | None = None,
) -> FoundTeachers:
    """Load the detector that labels images, or find how it is to be made; there is none without `data.pseudo`.

    Args:
        config: the run.
        data: of the run.
        teachers: detectors by the names that the config refers to.
        recipes: configs of teachers by the run folders that the stages refer to.

    Raises:
        DfmsdError: there is no such detector, or it cannot label these images.
    """
    if config.labeler is None:
        return FoundTeachers({}, {}, {})
    name, given = config.labeler, dict(teachers or {})
    if name in given:
        found = FoundTeachers({name: given[name]}, {}, {})
    else:
        found = find_teachers([name], data.class_names, Path(config.out), config.processes, recipes)
    loaded = {name: with_names(detector, config.teacher_classes) for name, detector in found.loaded.items()}
    for detector in loaded.values():
        _check(name, detector, config, data)
    return replace(found, loaded=loaded)


def describe_pseudo(config: DistillConfig, data: CocoDataModule, labeler: Detector | None) -> list[str]:
    """Say in a line each what is labeled by whom, where thresholds are chosen, and which classes get no box.

    Args:
        config: the run.
        data: of the run.
        labeler: see `find_labeler`; None if it is still to be trained on the data.
    """
    pseudo, size = config.data.pseudo, config.data.labeling_size
    if not config.data.labels_images:
        return []
    known = data.class_names if labeler is None else labeler.class_names
    common = common_classes(known, data.class_names).values()
    unknown = [name for label, name in enumerate(data.class_names) if label not in common]
    notes = [f"{config.labeler} does not know {listed(unknown)}: there, these are background"] if unknown else []
    line = (
        f"pseudo-labels: {config.labeler} labels {len(data.unlabeled)} images of {config.data.unlabeled} at {size} "
        f"pixels{' and mirrored' * pseudo.flip} before training"
    )
    if pseudo.score != AUTO:
        return [f"{line}, from score {pseudo.score:g} on", *notes]
    images = len(calibration_images(data))
    if config.data.holdout:
        return [f"{line}, from the scores of best F1 on the {images} images of data.holdout on", *notes]
    return [
        f"{line}, from the scores of best F1 on the {images} labeled training images on",
        *notes,
        "if the teacher was trained on these, they flatter it; data.holdout sets images aside to choose the scores on",
    ]


def label_images(config: DistillConfig, run: RunFolder, data: CocoDataModule, labeler: Detector | None) -> Any:
    """Label the unlabeled images of a run, or read the labels of a run that is resumed, and train on them.

    Args:
        config: the run.
        run: its folder.
        data: changed in place.
        labeler: see `find_labeler`; None for a run that is resumed.

    Returns:
        The contents of ``pseudo_labels.json``; None in all processes but the first, which read that file later.

    Raises:
        DfmsdError: no detection is confident enough, or the file of a resumed run is missing or has other images.
    """
    if not is_first_process():
        data.await_pseudo_labels(run.pseudo_file, keep_others=config.teaches)
        return None
    if labeler is None:
        content = _read(run)
    else:
        content = pseudo_labels(labeler, data, default_device())
        for line in describe_labels(content, data.class_names):
            console.print(line, highlight=False)
    data.add_pseudo_labels(content, keep_others=config.teaches)
    return content


def _read(run: RunFolder) -> Any:
    try:
        return json.loads(run.pseudo_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DfmsdError(
            f"{run.pseudo_file} is missing or damaged, so the run cannot continue with the same pseudo-labels; restore "
            "it, or start again with `overwrite`"
        ) from error


def _check(name: str, detector: Detector, config: DistillConfig, data: CocoDataModule) -> None:
    if not detector.class_names:
        raise DfmsdError(f"data.pseudo: {name} has no head, so it finds no objects to label; name another teacher")
    if not common_classes(detector.class_names, data.class_names):
        raise DfmsdError(
            f"data.pseudo: {name} knows none of the data's classes {listed(data.class_names)}; it knows "
            f"{listed(detector.class_names)}; map them in teacher_classes if only the names differ, or name another "
            "teacher"
        )
    check_finite(detector, f"teacher {name}")
    size, key = config.data.labeling_size, "data.pseudo.image_size"
    detector.input_sizes.check_batches(size, config.data.pad, f"teacher {name}", key)
