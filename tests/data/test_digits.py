from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dfmsd.data import CocoDataModule, DataConfig, digits, make_digits, open_split
from dfmsd.errors import DfmsdError

needs_sklearn = pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="scikit-learn is not installed")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("digits") / "set", train=60, val=20, size=96)


@needs_sklearn
def test_layout_counts_classes_and_sizes(root: Path) -> None:
    train, val = open_split(root, "train"), open_split(root, "val")
    assert train.class_names == tuple("0123456789")
    assert (len(train), len(val)) == (60, 20)
    assert train[0][0].shape == (3, 96, 96)
    counts = [len(record.labels) for record in train.records]
    assert min(counts) == 0
    assert 5 <= max(counts) <= digits.MAX_DIGITS
    assert len(set(torch.cat([record.labels for record in train.records]).tolist())) == 10
    assert all(len(a["bbox"]) == 4 and a["area"] > 0 for a in train.ground_truth["annotations"])


@needs_sklearn
def test_boxes_are_inside_the_image_vary_in_scale_and_do_not_overlap(root: Path) -> None:
    records = open_split(root, "train").records
    sides = []
    for record in records:
        boxes = record.boxes
        assert bool(((boxes >= 0) & (boxes <= 96)).all())
        sides += (boxes[:, 2:] - boxes[:, :2]).amax(dim=1).tolist()
        lower = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
        upper = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
        shared = (upper - lower).clamp(min=0).prod(dim=-1)
        assert shared.sum() == shared.diagonal().sum()
    assert min(sides) < 26
    assert 34 < max(sides) <= 42


@needs_sklearn
def test_boxes_are_tight_and_digits_stand_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    glyphs, _, _ = digits._sources("train")
    for glyph in glyphs[:20]:
        canvas = np.full((96, 96, 3), digits.PHOTO_BRIGHTNESS, dtype=np.float32)
        box = digits._paste(canvas, glyph, [], rng)
        assert box is not None
        difference = np.abs(canvas.mean(axis=-1) - digits.PHOTO_BRIGHTNESS)
        rows, columns = np.nonzero(difference > difference.max() / 2 + 1e-6)  # float32 rounding of exactly one half
        assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == box
        assert difference.max() >= digits.DIGIT_BRIGHTNESS - digits.PHOTO_BRIGHTNESS - 1e-6


@needs_sklearn
def test_splits_share_neither_digits_nor_regions_of_the_photographs() -> None:
    from sklearn.datasets import load_digits, load_sample_images

    parts = [digits._sources(split) for split in ("train", "val")]
    glyphs = np.concatenate([glyphs for glyphs, _, _ in parts]).reshape(-1, 64) * 16
    everything = load_digits().data
    assert sorted(map(tuple, glyphs.tolist())) == sorted(map(tuple, everything.tolist()))
    assert all(set(classes) == set(range(10)) for _, classes, _ in parts)
    for left, right, photo in zip(parts[0][2], parts[1][2], load_sample_images().images, strict=True):
        assert np.array_equal(np.concatenate([left, right], axis=1), photo)


@needs_sklearn
def test_the_seed_decides_every_pixel(root: Path, tmp_path: Path) -> None:
    again = make_digits(tmp_path / "again", train=60, val=20, size=96)
    other = make_digits(tmp_path / "other", train=60, val=20, size=96, seed=1)

    def content(folder: Path) -> list[bytes]:
        return [file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()]

    assert content(again) == content(root)
    assert content(other) != content(root)


@needs_sklearn
def test_the_default_digits_are_created_once_in_the_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DFMSD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digits, "DEFAULTS", {**digits.DEFAULTS, "train": 8, "val": 4})
    with caplog.at_level("INFO", "dfmsd"):
        data = CocoDataModule(DataConfig(image_size=64, batch_size=4))
    assert caplog.text.count("digits data set: drawn into") == 1
    (folder,) = (tmp_path / "cache").iterdir()
    assert folder.name.startswith("digits-")
    assert data.train.coco.file.is_relative_to(folder)
    monkeypatch.setattr(digits, "make_digits", lambda *_, **__: pytest.fail("made again"))
    assert digits.cached_digits() == folder


@needs_sklearn
def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="no space"):
        make_digits(tmp_path / "set", train=2, val=1)
    assert list(tmp_path.iterdir()) == []


@needs_sklearn
def test_a_folder_created_by_another_process_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "set"
    write = digits._write_split

    def race(*arguments: object) -> None:
        write(*arguments)  # type: ignore[arg-type]
        (target / "annotations").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(digits, "_write_split", race)
    assert make_digits(target, train=1, val=1) == target
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("values", [{"train": 0}, {"val": 0}, {"size": 32}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(tmp_path: Path, values: dict[str, int]) -> None:
    with pytest.raises(DfmsdError, match="digits: expected train >= 1"):
        make_digits(tmp_path / "set", **values)


def test_an_existing_folder_is_not_touched(tmp_path: Path) -> None:
    with pytest.raises(DfmsdError, match="exists already"):
        make_digits(tmp_path)


def test_the_error_about_a_missing_extra_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DfmsdError, match=r'pip install "dfmsd\[demo\]"'):
        make_digits(tmp_path / "set")


@needs_sklearn
def test_an_unwritable_cache_folder_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DfmsdError, match="set DFMSD_CACHE to a writable folder"):
        make_digits(tmp_path / "file" / "set")
