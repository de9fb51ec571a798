"""Images to compare a file on, to calibrate it with, and to measure its AP on."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.helpers.layouts import voc, yolo

from dfmsd.errors import DfmsdError
from dfmsd.exporting import images
from dfmsd.exporting.images import calibration_files, images_in, images_root, open_val


def test_the_images_of_a_data_set_are_those_of_its_val_split(tmp_path: Path) -> None:
    for layout in (yolo, voc):
        root = layout(tmp_path / layout.__name__)
        assert [path.name for path in images_in(root)] == ["e.png"]


def test_a_file_in_a_run_folder_takes_the_images_of_the_run(tmp_path: Path) -> None:
    data = tmp_path / "cells"
    (tmp_path / "config.yaml").write_text(f"data: {{root: {data}}}", encoding="utf-8")
    (tmp_path / "best.ckpt").touch()
    with pytest.raises(
        DfmsdError, match=r"`images`: required because .*cells, the data set of the model's run, does not exist; pass a"
    ):
        images_root(tmp_path, None)
    data.mkdir()
    for model in (tmp_path, tmp_path / "best.ckpt"):
        assert images_root(model, None) == data
    with pytest.raises(DfmsdError, match="`images`: required because hf:owner/model is not a run folder or a file in"):
        images_root(Path("hf:owner/model"), None)


def test_calibration_images_are_spread_over_the_train_split(tiny_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = calibration_files(tiny_root)
    assert {file.parent.name for file in train} == {"train"}
    monkeypatch.setattr(images, "CALIBRATION_IMAGES", 2)
    assert len(calibration_files(tiny_root)) == 2
    assert {file.parent.name for file in calibration_files(tiny_root / "val")} == {"val"}


def test_plain_images_have_no_ap(tiny_root: Path) -> None:
    assert open_val(tiny_root / "val", 64, ("square", "disc")) is None
    assert open_val(tiny_root, 64, ("square", "disc")) is not None
    with pytest.raises(DfmsdError, match=r"none of its classes \[.*\] is one of the detector's \[cat\]"):
        open_val(tiny_root, 64, ("cat",))
