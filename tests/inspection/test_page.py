from __future__ import annotations

from pathlib import Path

import matplotlib.image
import pytest
from matplotlib.patches import Rectangle
from tests.helpers.command import Command

import dfmsd
from dfmsd.data import open_split
from dfmsd.errors import DfmsdError
from dfmsd.inspection.sheet import choose_images, draw_sheet


def test_the_page_shows_every_split_with_its_images(tiny_coco: Path, tmp_path: Path) -> None:
    dfmsd.inspect_data(tiny_coco, out=tmp_path / "page")
    page = (tmp_path / "page" / "data.html").read_text()
    assert "COCO layout in" in page
    for name in ("train_0.jpg", "val_0.jpg", "square", "disc", "fewer than 10 objects"):
        assert name in page
    for split in ("train", "val"):
        picture = matplotlib.image.imread(tmp_path / "page" / f"{split}.png")
        assert min(picture.shape[:2]) > 100


def test_a_sheet_has_every_box_of_its_images(tiny_coco: Path) -> None:
    split = open_split(tiny_coco, "train")
    images = choose_images(split)
    assert [record.path for record, _ in images] == [record.path for record in split.records]
    figure = draw_sheet(images, split.class_names)
    drawn = [len([p for p in axis.patches if isinstance(p, Rectangle)]) for axis in figure.axes]
    assert drawn[: len(images)] == [len(record.boxes) for record in split.records]


def test_the_command_prints_tables_and_the_page(dfmsd: Command, tiny_coco: Path) -> None:
    status, out, _ = dfmsd("data", tiny_coco, "--out", "page", "--image-size", 128)
    assert status == 0
    assert "COCO layout in" in out
    assert "objects by size at 128 pixels" in out
    assert out.splitlines()[-1] == "page/data.html"
    assert (dfmsd.folder / "page" / "data.html").is_file()


def test_a_damaged_split_ends_with_status_2_after_the_rest(dfmsd: Command, tiny_coco: Path) -> None:
    (tiny_coco / "annotations" / "instances_val.json").write_text("{")
    status, out, error = dfmsd("data", tiny_coco)
    assert status == 2
    assert "objects by class" in out
    assert "val cannot be read:" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nowhere"], "no folder"), (["digits", "--image-size", 100], "image_size must be a multiple of 32")],
)
def test_bad_input_is_refused(dfmsd: Command, arguments: list[object], message: str) -> None:
    status, _, error = dfmsd("data", *arguments)
    assert status == 2
    assert message in error


def test_a_page_over_a_file_is_refused_before_reading(tiny_coco: Path, tmp_path: Path) -> None:
    (tmp_path / "page").write_text("")
    with pytest.raises(DfmsdError, match="page"):
        dfmsd.inspect_data(tiny_coco, out=tmp_path / "page")
