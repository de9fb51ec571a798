"""Unusual images are read correctly or refused by name."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers.bad_input import dfmsd as dfmsd
from tests.helpers.command import Command
from torch.utils.data import DataLoader

from dfmsd.data import Augmentation, DetectionDataset, collate, images, open_split, read_image
from dfmsd.data.images import FORMATS, read_size
from dfmsd.errors import DfmsdError


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I"])
def test_every_pixel_format_becomes_rgb_of_the_same_brightness(tmp_path: Path, mode: str) -> None:
    gray = np.array([[0, 255], [255, 0]], dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(gray.astype(np.uint16) * 257)
    elif mode == "I":
        image = Image.fromarray(gray.astype(np.int32) * 257)
    else:
        image = Image.fromarray(gray).convert("RGB" if mode == "CMYK" else "L").convert(mode)
    file = tmp_path / ("image.tif" if mode in ("CMYK", "I") else "image.png")
    image.save(file)
    assert torch.equal(read_image(file), torch.from_numpy(gray).expand(3, 2, 2))


def test_16_bit_gray_keeps_its_midtones(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 128 * 256, dtype=np.uint16)).save(tmp_path / "gray.png")
    assert read_image(tmp_path / "gray.png").unique().tolist() == [128]


def test_transparency_of_palettes_is_dropped(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "image.png", transparency=b"\x00\x80")
    assert Image.open(tmp_path / "image.png").info["transparency"]
    assert read_image(tmp_path / "image.png").permute(1, 2, 0).tolist() == [[[200, 0, 0], [0, 0, 200]]]


@pytest.mark.parametrize("suffix", ["gif", "webp", "tif", "png"])
def test_the_first_of_several_frames_is_read(tmp_path: Path, suffix: str) -> None:
    first, *rest = [Image.new("RGB", (8, 6), color) for color in ("red", "lime", "blue")]
    first.save(
        tmp_path / f"image.{suffix}",
        save_all=True,
        append_images=rest,
        **({"lossless": True} if suffix == "webp" else {}),
    )
    with Image.open(tmp_path / f"image.{suffix}") as file:
        assert getattr(file, "n_frames", 1) == 3
    image = read_image(tmp_path / f"image.{suffix}")
    assert image.flatten(1).unique(dim=1).tolist() == [[255], [0], [0]]
    assert read_size(tmp_path / f"image.{suffix}") == (6, 8)


def test_16_bit_color_keeps_the_upper_8_bits(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(">HHH", 0x1234, 0x8000, 0xFFFF)))
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b""))
    assert read_image(tmp_path / "deep.png").flatten().tolist() == [0x12, 0x80, 0xFF]


def test_a_large_image_is_read(tmp_path: Path) -> None:
    Image.new("1", (6000, 4000), 1).save(tmp_path / "huge.png")
    assert read_image(tmp_path / "huge.png").shape == (3, 4000, 6000)


@pytest.mark.parametrize(
    ("bits", "kind", "suffix"), [(12, np.uint16, "png"), (12, np.int32, "tif"), (8, np.uint16, "tif")]
)
def test_gray_of_fewer_bits_stored_in_16_keeps_its_brightness(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, bits: int, kind: Any, suffix: str
) -> None:
    monkeypatch.setattr(images, "_first_of_depth", {})
    highest = 2**bits - 1
    for name in "ab":
        Image.fromarray(np.array([[0, highest // 2, highest]], dtype=kind)).save(tmp_path / f"{name}.{suffix}")
        assert read_image(tmp_path / f"{name}.{suffix}")[0].tolist() == [[0, 127, 255]]
    (message,) = caplog.messages
    assert f"a.{suffix}: none of its 16-bit gray values needs more than {bits} bits" in message


@pytest.mark.parametrize("values", [(4000, 4096), (4096, 4000), (255, 4000)])
def test_gray_of_different_depths_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, values: tuple[int, int]
) -> None:
    monkeypatch.setattr(images, "_first_of_depth", {})
    for name, value in zip("abcd", (*values, *values), strict=True):
        Image.fromarray(np.array([[0, value]], dtype=np.uint16)).save(tmp_path / f"{name}.png")
        read_image(tmp_path / f"{name}.png")
    first, second = (next(bits for bits in (8, 12, 16) if value < 2**bits) for value in values)
    mixed = [message for message in caplog.messages if "b.png" in message]
    assert mixed == [
        f"{tmp_path / 'b.png'}: its 16-bit gray values are read as {second} bits, those of {tmp_path / 'a.png'} as "
        f"{first}, so the same value has another brightness in each; save all images with one depth, such as 8 bits"
    ]
    assert not [message for message in caplog.messages if "c.png" in message or "d.png" in message]


def test_black_says_nothing_of_the_depth(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_first_of_depth", {})
    for name, value in (("a", 0), ("b", 2**15)):
        Image.fromarray(np.array([[0, value]], dtype=np.uint16)).save(tmp_path / f"{name}.png")
        read_image(tmp_path / f"{name}.png")
    assert not caplog.messages


@pytest.mark.parametrize("value", [-1, 2**16])
def test_gray_beyond_16_bits_is_refused_before_work_starts(tmp_path: Path, value: int) -> None:
    Image.fromarray(np.array([[0, value]], dtype=np.int32)).save(tmp_path / "deep.tif")
    for read in (read_image, read_size):
        with pytest.raises(
            DfmsdError, match=r"deep\.tif: gray values from -?\d+ to \d+ do not fit into 16 bits; save it"
        ):
            read(tmp_path / "deep.tif")


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "float.tif")
    for read in (read_image, read_size):
        with pytest.raises(DfmsdError, match=r"float\.tif: floating-point pixels have no known range; save"):
            read(tmp_path / "float.tif")


def test_a_format_that_starts_external_programs_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "photo.jpg"
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\n")
    with Image.open(file) as image:
        assert image.format == "EPS"  # by its content, whatever its name
    assert "EPS" not in FORMATS
    for read in (read_image, read_size):
        with pytest.raises(DfmsdError, match=r"photo\.jpg: cannot be decoded as an image"):
            read(file)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "webp", "tif"])
def test_a_truncated_file_is_refused_or_read_completely(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"image.{suffix}"
    Image.effect_noise((24, 16), 60).convert("RGB").save(file)
    whole = file.read_bytes()
    refused = 0
    for end in range(0, len(whole), max(1, len(whole) // 40)):
        file.write_bytes(whole[:end])
        try:
            assert read_image(file).shape == (3, 16, 24)
        except DfmsdError as error:
            assert f"image.{suffix}: cannot be decoded" in str(error)  # noqa: PT017
            refused += 1
    assert refused > 20


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[:, :10] = 255  # white at the left, which orientation 6 turns to the top
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    image = read_image(tmp_path / "turned.png")
    assert image.shape == (3, 40, 20)
    assert bool((image[:, :10] == 255).all())
    assert bool((image[:, 10:] == 0).all())


ORIENTATIONS = {  # orientation -> where the top left corner of the stored pixels belongs
    1: ("left", "top"),
    2: ("right", "top"),
    3: ("right", "bottom"),
    4: ("left", "bottom"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_boxes_are_in_pixels_of_the_oriented_image(tmp_path: Path, orientation: int, suffix: str) -> None:
    pixels = np.zeros((32, 64, 3), dtype=np.uint8)
    pixels[:8, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    root = tmp_path / "data"
    (root / "train").mkdir(parents=True)
    (root / "annotations").mkdir()
    Image.fromarray(pixels).save(root / "train" / f"0.{suffix}", exif=exif)
    turned = orientation > 4
    width, height = (32, 64) if turned else (64, 32)
    w, h = (8, 16) if turned else (16, 8)
    horizontal, vertical = ORIENTATIONS[orientation]
    box = [0 if horizontal == "left" else width - w, 0 if vertical == "top" else height - h, w, h]
    truth = {
        "images": [{"id": 1, "file_name": f"0.{suffix}", "width": width, "height": height}],
        "categories": [{"id": 1, "name": "corner"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": box}],
    }
    (root / "annotations" / "instances_train.json").write_text(json.dumps(truth))
    for flip in (0.0, 1.0):  # through the whole pipeline, at twice the size
        sample = DetectionDataset(open_split(root, "train"), 128, Augmentation(128, flip))[0]
        x0, y0, x1, y1 = sample.target["boxes"][0].round().int().tolist()
        bright = sample.image.float().mean(0) > 128
        assert (x1 - x0, y1 - y0) == (2 * w, 2 * h)
        assert bright[y0:y1, x0:x1].float().mean() > 0.9
        assert bright.sum() < 1.15 * (x1 - x0) * (y1 - y0)


def test_an_error_in_a_loader_worker_is_one_line(dfmsd: Command) -> None:
    dataset = DetectionDataset(open_split("data", "train"), 64)
    (dfmsd.folder / "data" / "train" / "0.png").write_bytes(b"gone bad since")
    loader = DataLoader(dataset, batch_size=2, num_workers=1, collate_fn=collate)
    with pytest.raises(DfmsdError) as caught:
        list(loader)
    assert str(caught.value).startswith(f"{Path('data', 'train', '0.png')}: cannot be decoded as an image")
    assert "Traceback" not in str(caught.value)
