"""The registry: dispatch to families, and imports between them in one direction."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import dfmsd.detectors
from dfmsd.detectors import DETECTORS, DetectorConfig, build_detector
from dfmsd.detectors.config import OWN_ARCHS
from dfmsd.detectors.frameworks import FRAMEWORKS
from dfmsd.detectors.registry import find_adapter
from dfmsd.errors import DfmsdError

ROOT = Path(dfmsd.detectors.__file__).parent
FAMILIES = ("build", "huggingface", "mmdet", "torchvision")


def imported_families(family: str) -> Iterator[str]:
    """Yield the families that a family's modules import."""
    for file in (ROOT / family).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("dfmsd.detectors."):
                yield node.module.split(".")[2]


def test_the_archs_of_a_config_are_those_of_the_builders() -> None:
    assert tuple(DETECTORS) == OWN_ARCHS


@pytest.mark.parametrize("prefix", FRAMEWORKS)
def test_every_framework_exports_the_functions_of_an_adapter(prefix: str) -> None:
    adapter = find_adapter(f"{prefix}anything")
    assert all(callable(getattr(adapter, name)) for name in ("load", "build", "restore"))


def test_references_without_a_framework_have_no_adapter() -> None:
    assert find_adapter("fcos") is None
    assert find_adapter("FCOS_ResNet50_FPN_Weights.COCO_V1") is None


def test_families_do_not_import_each_other_in_circles() -> None:
    allowed = {"torchvision": set(), "build": {"torchvision"}, "huggingface": set(), "mmdet": set()}
    for family in FAMILIES:
        assert {other for other in imported_families(family) if other in FAMILIES} - {family} <= allowed[family]


def test_only_the_registry_and_what_uses_it_import_frameworks() -> None:
    """A new framework is a folder and one line: no other module of the room imports one by name."""
    for file in ROOT.glob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert "from dfmsd.detectors.huggingface" not in text
        assert "from dfmsd.detectors.mmdet" not in text


def test_a_detector_is_built_from_its_name() -> None:
    assert build_detector("fcos/test_efficientnet", ("a",)).config == DetectorConfig("fcos", "test_efficientnet")
    with pytest.raises(DfmsdError, match="unknown arch 'fcoss'"):
        build_detector("fcoss", ("a",))
    with pytest.raises(DfmsdError, match="a detector is a DetectorConfig or a name such as fcos/resnet18, got None"):
        build_detector(None, ("a",))  # type: ignore[arg-type]
