"""Changes of data and teachers that a run has begun with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dfmsd.detectors import load_detector, save_detector

Content = dict[str, Any]


def edit(file: Path, change: Callable[[Content], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def swap_classes(content: Content) -> None:
    first, second = content["categories"]
    first["name"], second["name"] = second["name"], first["name"]


def move_box(content: Content) -> None:
    content["annotations"][0]["bbox"][0] += 1


def make_crowd(content: Content) -> None:
    content["annotations"][0]["iscrowd"] = 1


def drop_image(content: Content) -> None:
    dropped = content["images"].pop(0)["id"]
    content["annotations"] = [box for box in content["annotations"] if box["image_id"] != dropped]


def shift_weights(teacher: Path) -> None:
    detector = load_detector(teacher)
    with torch.no_grad():
        next(iter(detector.parameters())).add_(1)
    save_detector(detector, teacher)
