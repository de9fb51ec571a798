"""Facts about a data set and its splits."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from dfmsd.data.config import DataConfig
from dfmsd.data.formats.layout import Layout, plain_name, without_unions
from dfmsd.data.opening import find_layout, open_split
from dfmsd.data.records import box_sizes
from dfmsd.data.split import DetectionSplit
from dfmsd.data.splitcheck import describe_contents
from dfmsd.detectors import DetectorConfig, build_detector
from dfmsd.errors import DfmsdError, one_line
from dfmsd.inspection.suspicion import rare_classes, suspicious_boxes
from dfmsd.types import LevelSpec
from dfmsd.utils.heard import heard_warnings

logger = logging.getLogger("dfmsd")


@dataclass(frozen=True)
class SplitFacts:
    """Numbers of one split.

    Attributes:
        images: Images.
        empty: Images without objects.
        crowds: Crowd regions, which neither training nor evaluation uses as objects.
        objects: Class -> number of objects.
        sizes: Square root of the area of each object, in pixels of the resized image.
    """

    images: int
    empty: int
    crowds: int
    objects: Mapping[str, int]
    sizes: Tensor = field(repr=False)


@dataclass(frozen=True)
class DataFacts:
    """What a data set holds.

    Attributes:
        layout: The recognized layout.
        image_size: Longer side that images are resized to.
        splits: Those that can be read, the one to train on first.
        facts: Split -> its numbers.
        levels: Pyramid levels of dfmsd's default student, with the object sizes that they are responsible for.
        findings: What is unlikely to be meant.
        errors: Split that cannot be read -> why.
    """

    layout: Layout
    image_size: int
    splits: Mapping[str, DetectionSplit]
    facts: Mapping[str, SplitFacts]
    levels: Sequence[LevelSpec]
    findings: Sequence[str]
    errors: Mapping[str, str]


def gather(config: DataConfig) -> DataFacts:
    """Read every split of a data set, and describe what it holds.

    Args:
        config: Where it is, and the size that images are resized to.

    Raises:
        DfmsdError: Its layout is not known.
    """
    layout = find_layout(config.root)
    splits: dict[str, DetectionSplit] = {}
    errors: dict[str, str] = {}
    with heard_warnings(printed=False) as findings:
        for name in sorted(layout.sources, key=lambda name: plain_name(name) != "train"):
            try:
                splits[name] = open_split(config, name)
            except DfmsdError as error:
                errors[name] = one_line(error)
        compared = {name: splits[name] for name in without_unions(splits)}
        train = _to_train_on(layout, compared)
        findings += describe_contents(train, [split for split in compared.values() if split is not train])
    facts = {name: _facts(split, config.image_size) for name, split in splits.items()}
    for name, split in compared.items():
        findings += suspicious_boxes(split, facts[name].sizes, config.image_size)
        findings += rare_classes(split, name, facts[name].objects)
    levels = build_detector(DetectorConfig(), ("object",)).levels
    return DataFacts(layout, config.image_size, splits, facts, levels, findings, errors)


def refuse_unreadable(facts: DataFacts) -> None:
    """Refuse a data set with a split that cannot be read.

    Raises:
        DfmsdError: The first such split, and why.
    """
    for name, reason in facts.errors.items():
        raise DfmsdError(f"{name} cannot be read: {reason}")


def _to_train_on(layout: Layout, splits: Mapping[str, DetectionSplit]) -> DetectionSplit | None:
    """Return the split that a run would train on, or None if it cannot be read or there is none."""
    name = min(layout.sources, key=lambda name: plain_name(name) != "train")
    return None if plain_name(name) in ("val", "test") else splits.get(name)


def _facts(split: DetectionSplit, image_size: int) -> SplitFacts:
    columns = split.records.columns
    counts = np.bincount(columns.labels, minlength=len(split.class_names)).tolist()
    return SplitFacts(
        images=len(split),
        empty=int((columns.counts == 0).sum()),
        crowds=int(split.truth.crowds.sum()),
        objects=dict(zip(split.class_names, counts, strict=True)),
        sizes=box_sizes(split.records, image_size),
    )
