from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dfmsd.errors import DfmsdError
from dfmsd.utils.files import (
    check_path,
    check_writable,
    is_taken,
    make_folder,
    new_folder,
    write_atomically,
    write_json,
    write_output,
    write_tensors,
    write_text,
)


@pytest.mark.parametrize("path", [".", "nowhere", "nowhere/below", __file__, f"{__file__}/below"])
def test_a_possible_path_is_accepted(path: str) -> None:
    check_path("out", path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", r"out: '' cannot be used as a path \(it is empty\)"),
        ("a\0b", r"out: 'a\\x00b' cannot be used as a path \(embedded null byte\)"),
        ("a" * 300, r"out: 'a{60}\.\.\.' cannot be used as a path \(File name too long\)"),
        ("a" * 61 + "\n\0", r"out: 'a{60}\.\.\.' cannot"),
    ],
)
def test_an_impossible_path_is_refused(path: str, message: str) -> None:
    with pytest.raises(DfmsdError, match=message) as caught:
        check_path("out", path)
    assert "\n" not in str(caught.value)


def test_a_new_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    with pytest.raises(RuntimeError), new_folder(out) as folder:  # noqa: PT012
        (folder / "file").touch()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    out.mkdir(parents=True)
    with new_folder(out) as folder:
        (folder / "file").touch()
        assert list(out.iterdir()) == []
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "out", "file"]
    with pytest.raises(DfmsdError, match="was written to in the meantime"), new_folder(tmp_path / "b"):  # noqa: PT012
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "theirs").touch()
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["theirs"]
    with (
        pytest.raises(DfmsdError, match=r"`bundle`: .*out exists and is not an empty folder"),
        new_folder(out, "bundle"),
    ):
        pytest.fail("entered")


def test_a_path_is_taken_by_a_file_or_by_a_folder_with_content(tmp_path: Path) -> None:
    assert not is_taken(tmp_path / "new")
    assert not is_taken(tmp_path)
    (tmp_path / "file").touch()
    assert is_taken(tmp_path / "file")
    assert is_taken(tmp_path)


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    write_text(file, "old\n")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_atomically(file, fail)
    assert file.read_bytes() == b"old\n"
    assert list(tmp_path.iterdir()) == [file]
    write_json(file, {"key": [1, None]})
    assert json.loads(file.read_text()) == {"key": [1, None]}
    assert list(tmp_path.iterdir()) == [file]


def test_the_folders_of_an_output_are_created(tmp_path: Path) -> None:
    write_output(tmp_path / "a" / "b" / "file.txt", "text")
    assert (tmp_path / "a" / "b" / "file.txt").read_text() == "text"


def test_tensors_have_the_permissions_of_any_other_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "a")
    write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1)})
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "a.txt").stat().st_mode
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_is_created_unless_a_file_is_in_its_way(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    write_text(tmp_path / "file", "")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DfmsdError, match=r"^out: cannot write to \S+ \((File exists|Not a directory)\); choose"):
            make_folder(path)


def test_a_writable_place_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    for path in (tmp_path / "old", tmp_path / "old" / "new" / "newer"):
        check_writable(path)
    assert [path.name for path in tmp_path.rglob("*")] == ["old"]
    write_text(tmp_path / "file", "")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DfmsdError, match=r"^out: cannot write to \S+ \((File exists|Not a directory)\); choose"):
            check_writable(path)


def test_a_folder_without_space_or_rights_for_a_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("dfmsd.utils.files.TemporaryFile", refuse)
    with pytest.raises(DfmsdError, match=r"^out: cannot write to \S+ \(Permission denied\); choose another folder"):
        check_writable(tmp_path / "new")
    assert not list(tmp_path.iterdir())
