"""Checks of what the splits of a data set hold: objects, classes and copies."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from dfmsd.data.config import DataConfig
from dfmsd.data.opening import has_split, open_split
from dfmsd.data.records import Records
from dfmsd.data.shards import file_stamp, find_member
from dfmsd.data.split import DetectionSplit
from dfmsd.errors import DfmsdError, listed
from dfmsd.utils.threads import map_in_threads

logger = logging.getLogger("dfmsd")
Copies = list[list[Path]]
"""Groups of at least two image files with the same content."""

PIECE = 4096
"""Bytes that are read at the start, middle and end of a file before the whole of it."""


def check_trainable(split: DetectionSplit) -> None:
    """Refuse to train on a split without objects.

    Raises:
        DfmsdError: No annotation is usable; the message says why.
    """
    if not _has_objects(split):
        raise DfmsdError(f"{split.file}: no annotation to train on; {_why_no_object(split)}")


def check_measurable(split: DetectionSplit, limit: int | None = None) -> None:
    """Refuse to measure AP on images without objects.

    Args:
        split: The split.
        limit: Only the first ``limit`` images are used; None uses all.

    Raises:
        DfmsdError: No annotation is usable; the message says why.
    """
    if _has_objects(split, limit):
        return
    if _has_objects(split):
        raise DfmsdError(
            f"{split.file}: no annotated object in the first {limit} of {len(split)} images, so no AP can be measured;"
            " use more of them"
        )
    raise DfmsdError(f"{split.file}: no annotated object, so no AP can be measured; {_why_no_object(split)}")


def open_test_split(config: DataConfig) -> DetectionSplit | None:
    """Open the test split, on which a run measures its student at the end; None if there is none with objects.

    One that `data.test` names has to have objects; one that is found besides may have none.

    Raises:
        DfmsdError: The split is damaged, or is named and missing or without objects.
    """
    if not has_split(config, "test"):
        return None
    split = open_split(config, "test")
    if config.test is not None:
        check_measurable(split)
    return split if _has_objects(split) else None


def annotated_classes(splits: Iterable[DetectionSplit]) -> list[str]:
    """Return the classes that have objects in one of the splits, in the order of their labels."""
    splits = list(splits)
    labels = np.unique(np.concatenate([split.records.columns.labels for split in splits]))
    return [splits[0].class_names[label] for label in labels]


def warn_of_contents(train: DetectionSplit, val: DetectionSplit) -> None:
    """Log what is unlikely to be meant, see `describe_contents`."""
    for finding in describe_contents(train, [val]):
        logger.warning("%s", finding)


def describe_contents(train: DetectionSplit | None, others: Sequence[DetectionSplit]) -> list[str]:
    """Say what is unlikely to be meant: splits and classes without objects, repeated boxes, and copies of images.

    Images are copies if their files have the same bytes. Files are read only as far as others of the same size force it
    to tell them apart.

    Args:
        train: The split to train on; None if there is none.
        others: Other splits of the same data set.
    """
    splits = [*others] if train is None else [train, *others]
    findings = [
        f"{split.file}: no annotated object; {_why_no_object(split)}" for split in splits if not _has_objects(split)
    ]
    if train is not None:
        findings += [*_unused(train), *_unlisted(train, others)]
    findings += _like_names(splits)
    paths = [split.records.paths for split in splits]
    contents = {path: path for of_split in paths for path in of_split}
    contents |= {copy: group[0] for group in find_copies([split.records for split in splits]) for copy in group}
    for split, of_split in zip(splits, paths, strict=True):
        findings += [*_repeats(split, of_split), *_copies(split.file, of_split, contents)]
    if train is not None:
        findings += _leaks(paths[0], zip(others, paths[1:], strict=True), contents)
    return findings


def _has_objects(split: DetectionSplit, limit: int | None = None) -> bool:
    return bool(split.records.columns.counts[:limit].any())


def _unused(train: DetectionSplit) -> Iterator[str]:
    known = annotated_classes([train])
    unused = [name for name in train.class_names if name not in known]
    if unused and known:
        yield f"{train.file}: no annotation of {_listed(unused)} to train on; remove categories that are no classes"


def _like_names(splits: Sequence[DetectionSplit]) -> Iterator[str]:
    like: dict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(chain.from_iterable(split.class_names for split in splits)):
        like[name.casefold()].append(name)
    for names in like.values():
        if len(names) > 1:
            yield f"{splits[0].file}: {_listed(names)} differ in capitals only: one class, perhaps"


def _unlisted(train: DetectionSplit, others: Iterable[DetectionSplit]) -> Iterator[str]:
    for split in others:
        names = [name for name in annotated_classes([split]) if name not in train.class_names]
        if names:
            yield (
                f"{split.file}: objects of {_listed(names)} here, which {train.file} does not have: give both the same "
                "classes"
            )


def _repeats(split: DetectionSplit, paths: Sequence[Path]) -> Iterator[str]:
    columns, owners = split.records.columns, split.records.owners
    rows = np.column_stack([owners, columns.labels, columns.boxes])
    _, first = np.unique(rows, axis=0, return_index=True)
    if len(first) < len(rows):
        again = np.setdiff1d(np.arange(len(rows)), first)
        yield (
            f"{split.file}: {len(again)} of {len(rows)} boxes repeat another one of the same class in the same image, "
            f"the first in {paths[owners[again[0]]].name}: remove them"
        )
    listed = [path for path, count in Counter(paths).items() if count > 1]
    if listed:
        yield (
            f"{split.file}: {len(listed)} image files are listed more than once, the first is {listed[0].name}: merge "
            "their entries"
        )


def _copies(file: Path, paths: Sequence[Path], contents: Mapping[Path, Path]) -> Iterator[str]:
    first: dict[Path, Path] = {}
    for path in paths:
        first.setdefault(contents[path], path)
    kept = set(first.values())
    copies = [path for path in dict.fromkeys(paths) if path not in kept]
    if copies:
        yield (
            f"{file}: {len(copies)} images are copies of others under another name, the first is {copies[0].name} of "
            f"{first[contents[copies[0]]].name}: keep one of each"
        )


def _leaks(
    train: Sequence[Path], others: Iterable[tuple[DetectionSplit, Sequence[Path]]], contents: Mapping[Path, Path]
) -> Iterator[str]:
    trained = {contents[path]: path for path in reversed(train)}
    for split, paths in others:
        leaked = [path for path in paths if contents[path] in trained]
        if leaked:
            yield (
                f"{split.file}: {len(leaked)} of {len(split)} evaluation images are also training images, the first is "
                f"{leaked[0]} as {trained[contents[leaked[0]]]}: AP on them says little, so remove them from one side"
            )


def find_copies(splits: Sequence[Records]) -> Copies:
    """Group the images whose files have the same bytes, in the order of the records.

    Args:
        splits: Images; a file may be listed more than once.
    """
    shapes = {
        path: tuple(size) for records in splits for path, size in zip(records.paths, records.columns.sizes, strict=True)
    }
    paths = list(shapes)
    size_of = dict(zip(paths, map_in_threads(lambda path: file_stamp(path)[1], paths), strict=True))
    groups = _regroup([paths], lambda path: (size_of[path], shapes[path]))
    if not any(map(find_member, paths)):  # whose index has the digest of the whole
        groups = _regroup(groups, lambda path: _digest(path, size_of[path], whole=False))
    return _regroup(groups, lambda path: _digest(path, size_of[path], whole=True))


def _regroup(groups: Copies, key: Callable[[Path], Hashable]) -> Copies:
    """Divide groups by a key, and drop the parts with a single image."""
    members = list(chain.from_iterable(groups))
    parts: dict[Hashable, list[Path]] = defaultdict(list)
    numbers = chain.from_iterable([number] * len(group) for number, group in enumerate(groups))
    for path, number, value in zip(members, numbers, map_in_threads(key, members), strict=True):
        parts[number, value].append(path)
    return [part for part in parts.values() if len(part) > 1]


def _digest(path: Path, size: int, *, whole: bool) -> str:
    """Hash a file, or three pieces of it."""
    if (found := find_member(path)) is not None:
        return found[1].digest
    content = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        if whole:
            while block := file.read(2**20):
                content.update(block)
        else:
            for start in (0, size // 2, max(0, size - PIECE)):
                file.seek(start)
                content.update(file.read(PIECE))
    return content.hexdigest()


def _why_no_object(split: DetectionSplit) -> str:
    annotations, crowds = len(split.truth.crowds), int(split.truth.crowds.sum())
    if not annotations:
        reason = f"its {len(split)} images have none"
    elif crowds == annotations:
        reason = f"all {crowds} are iscrowd"
    else:
        reason = f"of {annotations}, {crowds} are iscrowd and the others have no area inside their image"
    return f"{reason}: annotate objects, or choose another data set"


def _listed(names: Sequence[str]) -> str:
    kind = "class" if len(names) == 1 else "classes"
    return f"{kind} {listed(names, shown=5)}"
