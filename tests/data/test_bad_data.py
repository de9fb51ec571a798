"""Damaged annotation files and images: a one-line message, and exit status 2 on the command line."""

from __future__ import annotations

import copy
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.helpers.bad_input import LONG, RESULTS, TRUTH, says, truth_file
from tests.helpers.bad_input import dfmsd as dfmsd
from tests.helpers.command import Command

from dfmsd.data import open_split
from dfmsd.errors import DfmsdError

Edit = Callable[[Any], object]


# Annotation files.


def entry(key: str, **values: Any) -> Edit:
    return lambda raw: raw[key][0].update(values)


def without(key: str, name: str) -> Edit:
    return lambda raw: raw[key][0].pop(name)


IMAGE, BOX = "image id 1", "annotation id 7"


def used_twice(raw: dict[str, Any]) -> None:
    """Two categories of one name, both with annotations."""
    raw["categories"][0]["name"] = "disc"
    raw["annotations"].append({**raw["annotations"][0], "id": 8, "category_id": 1})


TRUTHS: dict[str, tuple[Edit | bytes, tuple[str, ...]]] = {
    "no text": (b"\xff\xfe\x00", ("UTF-16", "save it as UTF-8")),
    "empty": (b"", ("the file is empty",)),
    "cut": (json.dumps(TRUTH).encode()[:-20], ("not valid JSON", "line 1 column")),
    "a list": (b"[]", ("expected a JSON object", "got a list")),
    "too deep": (b"[" * 100_000, ("not valid JSON", "write the file again")),
    "a number too long": (b'{"images": [' + b"9" * 5000 + b"]}", ("not valid JSON",)),
    "no images": (lambda raw: raw.pop("images"), ("no list `images`", "annotations and categories")),
    "images by name": (lambda raw: raw.update(images={}), ("no list `images`",)),
    "images of null": (lambda raw: raw.update(images=[None]), ("images[0]", "no integer `id`", "add a unique one")),
    "no categories": (lambda raw: raw.update(categories=[], annotations=[]), ("`categories` is empty", "at least one")),
    "id of text": (entry("images", id="one"), ("images[0]", "no integer `id`", "'one'")),
    "id of truth": (entry("annotations", id=True), ("annotations[0]", "no integer `id`")),
    "id too long": (entry("images", id=10**30), ("images[0]", "64 bits")),
    "id twice": (entry("images", id=2), ("images id 2 occurs more than once", "make it unique")),
    "class of a number": (entry("categories", name=7), ("category id 1: name 7 is no text", "put it in quotes")),
    "class of null": (entry("categories", name=None), ("category id 1", "add it")),
    "class twice": (used_twice, ("category name 'disc'", "make it unique")),
    "class with a line break": (entry("categories", name="a\nb"), ("category id 1", "control characters", "rename it")),
    "class of half a character": (entry("categories", name="\ud800"), ("category id 1", "control characters")),
    "no file name": (without("images", "file_name"), (IMAGE, "`file_name`", "add it")),
    "file name of a number": (entry("images", file_name=7), (IMAGE, "`file_name`")),
    "file name with a null": (entry("images", file_name="a\0b/0.png"), (IMAGE, "control characters", "rename")),
    "file name too long": (entry("images", file_name=f"{LONG}.png"), ("are missing", "add the files")),
    "missing file": (entry("images", file_name="2.png"), ("1 of the 2 images", "2.png", "add the files")),
    "a folder": (entry("images", file_name="."), ("are missing",)),
    "out by dots": (entry("images", file_name="../../good.yaml"), ("lead out of data", "put the files themselves")),
    "out by root": (entry("images", file_name="/etc/hostname"), ("lead out of data", "/etc/hostname")),
    "another width": (entry("images", width=41), ("0.png is 40 x 30", "says 41 x 30", "correct width", IMAGE)),
    "absurd width": (entry("images", width=10**30), ("0.png is 40 x 30", IMAGE)),
    "sides swapped": (
        entry("images", width=30, height=40),
        ("EXIF orientation applied", "correct width", IMAGE, "or remove the EXIF orientation from the file"),
    ),
    "unknown image": (entry("annotations", image_id=9), (BOX, "unknown image_id 9", "correct or remove it")),
    "image of a list": (entry("annotations", image_id=[1]), (BOX, "unknown image_id [1]")),
    "unknown class": (entry("annotations", category_id=2), (BOX, "unknown category_id 2")),
    "no box": (without("annotations", "bbox"), (BOX, "bbox None", "correct it")),
    "box of three": (entry("annotations", bbox=[1, 2, 3]), (BOX, "4 finite numbers")),
    "box of text": (entry("annotations", bbox=["1", 2, 3, 4]), (BOX, "4 finite numbers")),
    "box of nan": (entry("annotations", bbox=[float("nan"), 2, 3, 4]), (BOX, "4 finite numbers")),
    "box without end": (entry("annotations", bbox=[0, 0, float("inf"), 4]), (BOX, "4 finite numbers")),
    "box of huge integers": (entry("annotations", bbox=[0, 0, 10**400, 4]), (BOX, "4 finite numbers")),
    "box of truth": (entry("annotations", bbox=[True, 2, 3, 4]), (BOX, "4 finite numbers")),
    "area of text": (entry("annotations", area="large"), (BOX, "area 'large'", "leave it out")),
    "negative area": (entry("annotations", area=-4), (BOX, "area -4")),
    "area of nan": (entry("annotations", area=float("nan")), (BOX, "area nan")),
    "crowd of text": (entry("annotations", iscrowd="0"), (BOX, "iscrowd '0'", "leave it out")),
}


def damage_truth(folder: Path, damage: Edit | bytes) -> None:
    content = copy.deepcopy(TRUTH)
    if not isinstance(damage, bytes):
        damage(content)
    truth_file(folder).write_bytes(damage if isinstance(damage, bytes) else json.dumps(content).encode())


@pytest.mark.parametrize(("damage", "pieces"), TRUTHS.values(), ids=TRUTHS)
def test_a_bad_annotation_file(dfmsd: Command, damage: Edit | bytes, pieces: tuple[str, ...]) -> None:
    damage_truth(dfmsd.folder, damage)
    with pytest.raises(DfmsdError) as caught:
        open_split("data", "train")
    says(str(caught.value), ("instances_train.json", *pieces))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no text", "too deep", "class of half a character", "out by root", "unknown image"])
def test_a_bad_annotation_file_on_the_command_line(dfmsd: Command, name: str) -> None:
    damage, pieces = TRUTHS[name]
    damage_truth(dfmsd.folder, damage)
    says(dfmsd.refusal("distill", "--config", "good.yaml"), ("instances_train.json", *pieces))


def test_splits_of_different_classes(dfmsd: Command) -> None:
    other = {**TRUTH, "categories": [{"id": 1, "name": "square"}, {"id": 3, "name": "ring"}]}
    truth_file(dfmsd.folder, "val").write_text(json.dumps(other))
    error = dfmsd.refusal("distill", "--config", "good.yaml")
    says(error, ("instances_val.json", "['square', 'ring'] differ", "give both files the same"))


# Images.


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Build a PNG with this size in its header and too few pixels."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (header, *chunks, (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


REPLACE = ("cannot be decoded as an image", "replace or remove it")
FILES: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "empty": (b"", REPLACE),
    "text": (b"this is no image", REPLACE),
    "a page": (b"<html><body>404 Not Found</body></html>", REPLACE),
    "noise": (bytes(range(256)) * 4, REPLACE),
    "a header alone": (png(40, 30)[:20], REPLACE),
    "a bomb of pixels": (png(60_000, 60_000), (*REPLACE, "decompression bomb")),
    "a bomb of text": (png(40, 30, (b"zTXt", b"a\0\0" + zlib.compress(b"0" * 2**21))), REPLACE),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\n", REPLACE),
    "no sides": (png(0, 0), ("0.png",)),
    "of another size": (png(20, 30), ("0.png is 20 x 30", "instances_train.json says 40 x 30")),
}


@pytest.mark.parametrize(("content", "pieces"), FILES.values(), ids=FILES)
def test_a_bad_image(dfmsd: Command, content: bytes, pieces: tuple[str, ...]) -> None:
    (dfmsd.folder / "data" / "train" / "0.png").write_bytes(content)
    says(dfmsd.refusal("distill", "--config", "good.yaml"), ("train/0.png", *pieces))


def test_a_bad_unlabeled_image(dfmsd: Command, tiny_teachers: tuple[str, str]) -> None:
    (dfmsd.folder / "more").mkdir()
    (dfmsd.folder / "more" / "x.jpg").write_bytes(b"text")
    stages = f"[{{teacher: {tiny_teachers[0]}, epochs: 1}}]"
    error = dfmsd.refusal("distill", "--config", "good.yaml", "--data.unlabeled", "more", "--stages", stages)
    says(error, ("more/x.jpg", *REPLACE))


def test_a_truncated_image_ends_the_run_without_results(dfmsd: Command) -> None:
    file = dfmsd.folder / "data" / "train" / "1.png"
    Image.effect_noise((40, 30), 50).convert("RGB").save(file)
    file.write_bytes(file.read_bytes()[:1000])  # the header is intact, so the damage is found when the image is decoded
    status, _, error = dfmsd("distill", "--config", "good.yaml")
    assert status == 2
    says(error.splitlines()[-1], ("dfmsd: error: ", "train/1.png", *REPLACE))
    assert "Traceback" not in error
    assert not [name for name in RESULTS if (dfmsd.folder / "run" / name).exists()]
