"""Class lists of several splits."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from dfmsd.data.split import DetectionSplit
from dfmsd.errors import DfmsdError

logger = logging.getLogger("dfmsd")


def unite_classes(splits: Sequence[DetectionSplit]) -> list[DetectionSplit]:
    """Number the classes of all splits alike, by name: those of the first split, then what others have besides."""
    names = list(dict.fromkeys(name for split in splits for name in split.class_names))
    if all(split.class_names == tuple(names) for split in splits):
        return list(splits)
    if not any(split.classes_listed for split in splits):
        names.sort()
    return [relabel(split, names) for split in splits]


def match_classes(train: DetectionSplit, val: DetectionSplit) -> tuple[DetectionSplit, DetectionSplit]:
    """Number the classes of two splits alike, by name, where their lists differ.

    Classes that only one list has are no contradiction if they have no annotation in the other split. Lists that come
    from the objects themselves, as in VOC, are united.

    Raises:
        DfmsdError: A class with annotations in ``val`` is not in the list of ``train``.
    """
    if train.class_names == val.class_names:
        return train, val
    used = [val.class_names[label] for label in np.unique(val.truth.labels)]
    unknown = [name for name in used if name not in train.class_names]
    if unknown and train.classes_listed:
        raise DfmsdError(
            f"{val.file}: classes {list(val.class_names)} differ from those of the train split, "
            f"{list(train.class_names)}: {', '.join(unknown)} has annotations here, but is no class there; give both "
            "files the same classes"
        )
    names = sorted({*train.class_names, *unknown}) if unknown else train.class_names
    if unknown:
        logger.warning("%s: no training image has %s", train.file, ", ".join(unknown))
    logger.info("%s: its classes are numbered by name, as in %s", val.file, train.file)
    return relabel(train, names), relabel(val, names)


def relabel(split: DetectionSplit, class_names: Sequence[str]) -> DetectionSplit:
    """Return a copy whose labels stand for other class names; category ids stay, and new classes have new ones.

    Args:
        split: The split.
        class_names: New names, which include every class that has an object in the split.
    """
    ids = dict(zip(split.class_names, split.category_ids, strict=True))
    free = max(split.category_ids) + 1
    for number, name in enumerate(name for name in class_names if name not in split.class_names):
        ids[name] = free + number
    return split.relabeled(class_names, [ids[name] for name in class_names])
