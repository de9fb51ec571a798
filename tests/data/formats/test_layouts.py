"""The same data set in every layout."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers.layouts import LAYOUTS, SPLITS, Picture, Splits, classes, close, read

from dfmsd.data import open_split
from dfmsd.data.formats import recognize
from dfmsd.errors import DfmsdError

NAMES = {
    "coco": "COCO",
    "coco_2017": "COCO",
    "cvat": "COCO",
    "roboflow_coco": "Roboflow COCO",
    "yolo": "YOLO",
    "roboflow_yolo": "YOLO",
    "yolo_lists": "YOLO",
    "cvat_yolo": "YOLO",
    "label_studio_yolo": "YOLO",
    "voc": "Pascal VOC",
    "roboflow_voc": "Pascal VOC, a folder per split,",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_boxes(layout: str, tmp_path: Path) -> None:
    root = LAYOUTS[layout](tmp_path / "data")
    assert recognize(root).name == NAMES[layout]
    for split, wanted in SPLITS.items():
        assert close(read(root, split), wanted)
        assert open_split(root, split).class_names == ("eel", "ray")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hidden_files_and_a_folder_around_do_not_matter(layout: str, tmp_path: Path) -> None:
    root = LAYOUTS[layout](tmp_path / "data" / "unpacked")
    for path in list(root.rglob("*.*")):
        if path.is_file():
            (path.parent / f"._{path.name}").write_bytes(b"\0")
            for folder in (".ipynb_checkpoints", "@eaDir"):
                (path.parent / folder).mkdir(exist_ok=True)
                shutil.copy(path, path.parent / folder / f"{path.stem}-checkpoint{path.suffix}")
    for split, wanted in SPLITS.items():
        assert close(read(root.parent, split), wanted)


@pytest.mark.parametrize("layout", ["yolo", "roboflow_yolo", "voc", "roboflow_voc"])  # others list the names in UTF-8
def test_image_names_that_are_not_utf_8_are_refused(layout: str, tmp_path: Path) -> None:
    root = LAYOUTS[layout](tmp_path / "data")
    for path in list(root.rglob("a.*")):
        os.rename(path, os.fsencode(path.parent) + b"/\xe9" + os.fsencode(path.suffix))
    with pytest.raises(DfmsdError, match=r"names of 1 of its \d images are not UTF-8, .* b'\\xe9\.png'; rename them"):
        open_split(root, "train")


WORDS = (
    st.text("abÖ漢 .-_1'&", min_size=1, max_size=8).map(str.strip).filter(lambda text: text.strip(".") == text != "")
)


@st.composite
def pictures(draw: st.DrawFn, names: list[str], least: int) -> Picture:
    width, height = draw(st.integers(4, 40)), draw(st.integers(4, 40))

    def side(limit: int) -> st.SearchStrategy[tuple[float, float]]:
        """Quarters of a pixel; at least two pixels long."""
        return st.integers(0, 4 * limit - 8).flatmap(
            lambda low: st.integers(low + 8, 4 * limit).map(lambda high: (low / 4, high / 4))
        )

    box = st.tuples(side(width), side(height)).map(lambda s: (s[0][0], s[1][0], s[0][1], s[1][1]))
    return Picture(width, height, draw(st.lists(st.tuples(st.sampled_from(names), box), min_size=least, max_size=4)))


@st.composite
def datasets(draw: st.DrawFn) -> Splits:
    names = draw(st.lists(WORDS, min_size=1, max_size=3, unique=True))
    stems = draw(st.lists(WORDS, min_size=2, max_size=5, unique_by=str.casefold))
    images = {stem: draw(pictures(names, int(number < 2))) for number, stem in enumerate(stems)}
    # every class is in both splits, as VOC has no other list of them
    used = {name for one in images.values() for name, _ in one.boxes}
    for stem in stems[:2]:
        missing = used - {name for name, _ in images[stem].boxes}
        images[stem].boxes.extend((name, (0.0, 0.0, 2.0, 2.0)) for name in sorted(missing))
    return {
        "train": {stem: images[stem] for stem in stems[::2]},
        "val": {stem: images[stem] for stem in stems[1::2]},
    }


@settings(max_examples=15, deadline=None)
@given(splits=datasets())
def test_a_random_data_set_comes_back_from_every_layout(
    splits: Splits, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("random")
    for layout, writer in LAYOUTS.items():
        root = writer(folder / layout, splits)
        for split, wanted in splits.items():
            assert close(read(root, split), wanted), layout
            assert list(open_split(root, split).class_names) == classes(splits)
