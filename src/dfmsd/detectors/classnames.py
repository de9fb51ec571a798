"""Class names: lists of them, and those of trained detectors in the data set's spelling."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from dfmsd.detectors.featurepath import describe_value
from dfmsd.errors import DfmsdError

if TYPE_CHECKING:
    from dfmsd.detectors.base import Detector

D = TypeVar("D", bound="Detector")
Names = Mapping[str, str]
"""Class name of a trained detector -> that of the data set; several may become one."""


def read_names(values: Iterable[str], setting: str) -> tuple[str, ...]:
    """Return class names, or those of something else, each of which may occur once.

    Args:
        values: The names.
        setting: Name of the argument, for messages.

    Raises:
        DfmsdError: They are a single text, or one of them is no name or occurs twice.
    """
    if isinstance(values, str):
        raise DfmsdError(f"{setting}: {values!r} is a single text; pass a list of names, [{values!r}]")
    if not isinstance(values, Iterable):
        raise DfmsdError(f"{setting}: expected a list of names, got {describe_value(values)}")
    names = tuple(values)
    wrong = [name for name in names if not isinstance(name, str) or not name]
    if wrong:
        raise DfmsdError(f"{setting}: {wrong[0]!r} is not a name; pass a list of names")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DfmsdError(f"{setting}: {twice[0]!r} occurs {names.count(twice[0])} times; name each once")
    return names


def with_names(detector: D, names: Names | None) -> D:
    """Return a detector whose classes have the names of the data set.

    Args:
        detector: Left as it is; the result shares its modules.
        names: Of the classes that are called otherwise; None returns the detector itself, and so does one that has
            been renamed before, since names that change places would change back.
    """
    if not names or detector.renamed:
        return detector
    renamed = copy.copy(detector)
    renamed.renamed = True
    renamed.class_names = tuple(names.get(name, name) for name in detector.class_names)
    return renamed


def check_plain(names: Any) -> None:
    """Refuse class names that are no text, such as ``no``, which YAML reads as false.

    Raises:
        DfmsdError: Names the entry.
    """
    for old, new in (names or {}).items():
        if not (isinstance(old, str) and isinstance(new, str) and old and new):
            raise DfmsdError(
                f"teacher_classes: {old!r}: {new!r} are not two class names, the teacher's and the data's; write them "
                "in quotes"
            )


def check_names(names: Names | None, class_names: Collection[str], known: Iterable[Collection[str]] | None) -> None:
    """Refuse names that do not exist.

    Args:
        names: Of a config.
        class_names: Of the data set.
        known: Class names of each teacher, renamed or not; None does not check them.

    Raises:
        DfmsdError: Names the class, and those that exist.
    """
    for old, new in (names or {}).items():
        if new not in class_names:
            raise DfmsdError(f"teacher_classes: the data have no class {new!r}; they have {', '.join(class_names)}")
        teachers = None if known is None else [each for each in known if each]
        if teachers is not None and not any(old in each or new in each for each in teachers):
            has = "; ".join(", ".join(each) for each in teachers) or "none"
            raise DfmsdError(f"teacher_classes: no teacher has a class {old!r}; their classes are {has}")
