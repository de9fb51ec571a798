"""The images that a file is compared on."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.helpers.layouts import voc, yolo

from dfmsd.errors import DfmsdError
from dfmsd.exporting.images import images_in, images_root


def test_the_images_of_a_data_set_are_those_of_its_val_split(tmp_path: Path) -> None:
    for layout in (yolo, voc):
        root = layout(tmp_path / layout.__name__)
        assert [path.name for path in images_in(root)] == ["e.png"]


def test_a_file_in_a_run_folder_takes_the_images_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: {root: cells}", encoding="utf-8")
    (tmp_path / "best.ckpt").touch()
    for model in (tmp_path, tmp_path / "best.ckpt"):
        assert images_root(model, None) == Path("cells")
    with pytest.raises(DfmsdError, match="`images`: required because hf:owner/model is not a run folder or a file in"):
        images_root(Path("hf:owner/model"), None)
