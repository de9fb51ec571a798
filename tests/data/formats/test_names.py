from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from dfmsd.data.formats.names import find_images
from dfmsd.errors import DfmsdError

FILES = ("a.jpg", "deep/b.JPG", "my c.jpg", unicodedata.normalize("NFD", "öl.jpg"), "scan.1.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in (*FILES, "._a.jpg"):
        file = tmp_path / "data" / "train" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return tmp_path / "data"


def find(root: Path, *names: str) -> list[str]:
    paths = find_images(names, (root / "train", root), root, root / "x.json")
    return [path.relative_to(root / "train").as_posix() for path in paths]


FORMS = {
    r"train\a.jpg": "a.jpg",
    r"C:\Users\me\data\deep\b.JPG": "deep/b.JPG",
    "/home/me/data/train/a.jpg": "a.jpg",
    "A.JPG": "a.jpg",
    "deep/b.jpg": "deep/b.JPG",
    "b.jpg": "deep/b.JPG",
    "../../label-studio/data/upload/1/a.jpg": "a.jpg",
    "my%20c.jpg": "my c.jpg",
    "a": "a.jpg",
    "scan.1": "scan.1.png",
    "öl.jpg": FILES[3],
}


@pytest.mark.parametrize(("name", "file"), FORMS.items())
def test_a_name_of_another_form_finds_the_one_file_that_fits(
    root: Path, name: str, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert find(root, name) == [file]
    assert "x.json: 1 of the 1 images have a file whose name is written otherwise" in caplog.text


def test_names_that_are_right_give_no_warning(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert find(root, *FILES) == list(FILES)
    assert not caplog.records


def test_a_file_of_its_own_name_is_not_taken_by_another(root: Path) -> None:
    with pytest.raises(DfmsdError, match=r"1 of the 2 images .* missing: A\.jpg \(the nearest name there is a\.jpg\)"):
        find(root, "a.jpg", "A.jpg")


def test_two_names_for_one_file_are_missing(root: Path) -> None:
    with pytest.raises(DfmsdError, match=r"2 of the 2 images .* missing: x/a\.jpg, y/a\.jpg"):
        find(root, "x/a.jpg", "y/a.jpg")


def test_two_files_for_one_name_are_no_match(root: Path) -> None:
    (root / "train" / "A.jpg").touch()
    with pytest.raises(DfmsdError, match="1 of the 1 images"):
        find(root, "x/a.jpg")


def test_several_files_of_one_name_are_told(root: Path) -> None:
    for folder in ("ray", "eel"):
        (root / "train" / folder).mkdir()
        (root / "train" / folder / "b.jpg").touch()
    with pytest.raises(DfmsdError, match=r"missing: b\.jpg \(2 files in its subfolders have the name b\.jpg\)"):
        find(root, "b.jpg")


def test_missing_files_are_counted_and_three_are_named(root: Path) -> None:
    with pytest.raises(DfmsdError, match=r"5 of the 6 images .* are missing: 0\.png, 1\.png, 2\.png, \.\.\. "):
        find(root, *(f"{index}.png" for index in range(5)), "a.jpg")


@pytest.mark.parametrize("folder", [".ipynb_checkpoints", "@eaDir"])
def test_images_in_hidden_folders_are_not_taken(root: Path, folder: str) -> None:
    (root / "train" / folder).mkdir()
    (root / "train" / folder / "d.jpg").touch()
    with pytest.raises(DfmsdError, match="1 of the 1 images"):
        find(root, "x/d.jpg")


def test_images_of_another_split_are_not_taken(root: Path) -> None:
    with pytest.raises(DfmsdError, match="1 of the 1 images"):
        find_images(["A.jpg"], (root / "val", root), root, root / "x.json")
