"""YAML files of YOLO data sets: their values as text, the classes, and the shape of key points."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from dfmsd.data.formats.layout import check_names
from dfmsd.data.formats.text import read_text
from dfmsd.errors import DfmsdError, one_line

KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""Split -> keys that may name its images."""
LABEL_STUDIO, CVAT = "classes.txt", "obj.names"
"""Files of class names, one a line, in exports without a YAML file."""


class TextLoader(yaml.SafeLoader):
    """A loader that leaves every value but null as it is written: ``yes``, ``1``, ``1e3``; keys have to differ."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuse a key that occurs twice, of which YAML's own loader takes the last."""
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value} occurs twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


TextLoader.yaml_implicit_resolvers = {
    first: [pair for pair in resolvers if pair[0] == "tag:yaml.org,2002:null"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_settings(file: Path) -> dict[str, Any]:
    """Read a YAML file whose values stay text; for a file of class names, return what the YAML file would say.

    Raises:
        DfmsdError: It is not valid YAML, or no mapping.
    """
    text = read_text(file)
    if file.name in (LABEL_STUDIO, CVAT):
        return {"names": text.rstrip().splitlines(), **_exported_places(file.parent)}
    try:
        content = TextLoader(text).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        tab = mark is not None and text[mark.index : mark.index + 1] == "\t"
        reason = "tab" if tab else one_line(getattr(error, "problem", None) or error)
        raise DfmsdError(f"{file}: not valid YAML ({reason}){line}; correct it there") from error
    if not isinstance(content, dict):
        raise DfmsdError(f"{file}: expected keys such as names, train and val; write them there")
    return content


def find_class_list(root: Path) -> Path | None:
    """Return the file of class names in an export of Label Studio or CVAT without a YAML file, or None."""
    if (root / LABEL_STUDIO).is_file() and (root / "images").is_dir() and (root / "labels").is_dir():
        return root / LABEL_STUDIO
    return root / CVAT if (root / CVAT).is_file() and _lists(root) else None


def _exported_places(root: Path) -> dict[str, str]:
    """Return key -> list of images or folder of images; a single folder is that of ``train``."""
    folders = {key: f"images/{key}" for keys in KEYS.values() for key in keys if (root / "images" / key).is_dir()}
    return _lists(root) or folders or {"train": "images"}


def _lists(root: Path) -> dict[str, str]:
    return {key: f"{key}.txt" for keys in KEYS.values() for key in keys if (root / f"{key}.txt").is_file()}


def class_names(settings: Mapping[str, Any], file: Path) -> dict[int, str]:
    """Return class number -> name, from a list or from a mapping, whose keys are the numbers.

    Raises:
        DfmsdError: There are no names, or one of them is no text or occurs twice.
    """
    given = settings.get("names")
    if isinstance(given, list):
        given = dict(enumerate(given))
    if not isinstance(given, dict) or not given:
        shown = f", but {given!r}" if given else ""
        raise DfmsdError(f"{file}: no `names` of classes{shown}; give a list, or a mapping from class number to name")
    names: dict[int, str] = {}
    for key, name in given.items():
        number = int(key) if str(key).isdecimal() and len(str(key)) < 10 else None
        if number is None or number in names:
            raise DfmsdError(f"{file}: names: {key!r} is not the number of one class; count from 0")
        if not isinstance(name, str):
            advice = "put the name in quotes" if name is None else "give its name alone"
            raise DfmsdError(f"{file}: names: class {number} is {name!r}, no text; {advice}")
        names[number] = name.strip()
    check_names(names, file)
    count = settings.get("nc")
    if count is not None and count not in (str(len(names)), str(max(names) + 1)):
        raise DfmsdError(f"{file}: nc is {count}, but there are {len(names)} names; correct one of them")
    return names


def keypoint_shape(settings: Mapping[str, Any], file: Path) -> tuple[int, int] | None:
    """Return the number of key points that follow each box, and how many numbers each has; None if there are none.

    Raises:
        DfmsdError: ``kpt_shape`` is no such pair.
    """
    given = settings.get("kpt_shape")
    if given is None:
        return None
    numbers = [int(text) if re.fullmatch(r"[1-9][0-9]{0,3}", str(text)) else 0 for text in given]
    if not isinstance(given, list) or len(numbers) != 2 or not numbers[0] or numbers[1] not in (2, 3):
        raise DfmsdError(
            f"{file}: kpt_shape: expected a number of key points and 2 or 3, as in [17, 3], got {given!r}; correct it"
        )
    return numbers[0], numbers[1]
