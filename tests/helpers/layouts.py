"""A tiny data set in the layouts of YOLO and Pascal VOC."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

Boxes = dict[str, list[tuple[str, tuple[int, int, int, int]]]]


WANTED: dict[str, Boxes] = {
    "train": {"a": [("ray", (8, 16, 24, 48)), ("eel", (0, 0, 32, 32))], "b": []},
    "val": {"c": [("eel", (16, 8, 48, 40))]},
}
"""Split -> image -> class and box, xyxy in pixels; images are 64 x 48 pixels."""


def image(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48), (10, 20, 30)).save(folder / f"{name}.jpg")


def xml(boxes: list[tuple[str, tuple[int, int, int, int]]]) -> str:
    """Write an XML file; corners are counted from 1 and inclusive."""
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax>"
        f"<ymax>{y2}</ymax></bndbox></object>"
        for name, (x1, y1, x2, y2) in boxes
    )
    return f"<annotation><size><width>64</width><height>48</height><depth>3</depth></size>{objects}</annotation>"


def yolo(root: Path, by_kind: bool = True) -> Path:
    """Write `images/train` and `labels/train`, or `train/images` and `train/labels` with paths as Roboflow does."""
    for split, images in WANTED.items():
        for name, boxes in images.items():
            pictures, labels = (
                root / (f"{kind}/{split}" if by_kind else f"{split}/{kind}") for kind in ("images", "labels")
            )
            image(pictures, name)
            labels.mkdir(parents=True, exist_ok=True)
            rows = [
                f"{['ray', 'eel'].index(c)} {(x1 + x2) / 128} {(y1 + y2) / 96} {(x2 - x1) / 64} {(y2 - y1) / 48}"
                for c, (x1, y1, x2, y2) in boxes
            ]
            (labels / f"{name}.txt").write_text("\n".join(rows))
    paths = ("images/train", "images/val") if by_kind else ("../train/images", "../val/images")
    (root / "data.yaml").write_text(f"train: {paths[0]}\nval: {paths[1]}\nnames: [ray, eel]\n")
    return root


def voc(root: Path, lists: bool = True) -> Path:
    """Write the layout of the challenge, or one folder per split."""
    for split, images in WANTED.items():
        for name, boxes in images.items():
            pictures, labels = (root / "JPEGImages", root / "Annotations") if lists else (root / split,) * 2
            image(pictures, name)
            labels.mkdir(parents=True, exist_ok=True)
            (labels / f"{name}.xml").write_text(xml(boxes))
        if lists:
            (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
            (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(images))
    return root
