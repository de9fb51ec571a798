"""Checkpoints from strangers, which are read without the library."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from dfmsd.detectors import build_detector, load_detector
from dfmsd.detectors.ultralytics.checkpoint import EXPECTED
from dfmsd.errors import DfmsdError


class Touch:
    """Pickled as a call that writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_a_checkpoint_that_would_run_code_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"model": Touch(tmp_path / "touched")}, tmp_path / "evil.pt")
    with pytest.raises(DfmsdError, match=r"evil.pt names (posix|nt).system, which is no layer") as caught:
        load_detector(f"ultralytics:{tmp_path / 'evil.pt'}")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    "name",
    [
        "posix.system",
        "builtins.eval",
        "subprocess.Popen",
        "torch.hub.load",
        "torch.nn.modules.conv.os.system",
        "ultralytics.utils.downloads.download",
        "ultralytics.nn.tasks.os.system",
    ],
)
def test_only_layers_and_values_of_the_library_are_expected(name: str) -> None:
    assert not EXPECTED.fullmatch(name)


@pytest.mark.parametrize(
    "name",
    ["ultralytics.nn.modules.head.Detect", "torch.nn.modules.conv.Conv2d", "ultralytics.nn.tasks.DetectionModel"],
)
def test_layers_of_the_library_are_expected(name: str) -> None:
    assert EXPECTED.fullmatch(name)


@pytest.mark.skipif(find_spec("ultralytics") is not None, reason="ultralytics is installed")
@pytest.mark.parametrize("build", [load_detector, lambda name: build_detector(name, ["a"])])
def test_without_the_library_its_extra_is_named(tmp_path: Path, build: Callable[[str], object]) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(DfmsdError, match=r"needs ultralytics.*pip install 'dfmsd\[ultralytics\]'"):
        build(f"ultralytics:yolo11n.yaml,{tmp_path / 'weights.pt'}")
