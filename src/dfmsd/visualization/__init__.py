"""Pictures of what a distillation looks at: attention, masks and errors on every level, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dfmsd.data.images import read_image
from dfmsd.data.inputs import find_images, to_batch
from dfmsd.detectors import Detector, load_detector
from dfmsd.errors import DfmsdError
from dfmsd.evaluation.evaluate import detect
from dfmsd.types import Batch
from dfmsd.utils.files import write_atomically
from dfmsd.visualization.draw import Scene, draw_contact_sheet, draw_scene, png
from dfmsd.visualization.layers import Lesson, lessons
from dfmsd.visualization.look import look

__all__ = ["CONTACT_SHEET", "Scene", "draw_scene", "lessons", "png", "see", "visualize"]

CONTACT_SHEET = "contact_sheet.png"
MIN_SCORE = 0.3
"""Of the teacher's detections that stand for objects in an image without annotations."""


def visualize(model: str, teacher: str, images: Sequence[str | Path], out: Path) -> list[Path]:
    """Write one PNG an image, and a contact sheet.

    Args:
        model: the student; its run folder has the training-only layers, which the reconstruction needs.
        teacher: see `dfmsd.detectors.load_detector`.
        images: files, and folders whose images are taken.
        out: folder of the pictures, made if it is missing; files of the same names are replaced.

    Returns:
        What was written, the contact sheet last.

    Raises:
        DfmsdError: there is no such detector or image, or they do not fit.
    """
    files = find_images(images, exclude=out)
    if not files:
        raise DfmsdError("no image is given; name at least one file or folder")
    student, detector = load_detector(model), load_detector(teacher)
    taught = lessons(model, student, teacher, detector)
    size = student.input_size
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DfmsdError(f"out: cannot write to {out} ({error.strerror}); choose another folder") from error
    scenes, written = [], []
    for file, name in zip(files, _names(files), strict=True):
        batch = to_batch(read_image(file), size)
        boxes, whose = _objects(detector, batch)
        scenes.append(see(file.name, student, detector, taught, batch.images, boxes, whose))
        written.append(_write(out / name, png(draw_scene(scenes[-1]))))
    return [*written, _write(out / CONTACT_SHEET, png(draw_contact_sheet(scenes)))]


def see(
    name: str,
    student: Detector,
    teacher: Detector,
    taught: Sequence[Lesson],
    image: Tensor,
    boxes: Tensor,
    boxes_are: str,
) -> Scene:
    """Run both detectors on one image and look at every stage.

    Args:
        name: of the image.
        student: in eval mode.
        teacher: in eval mode.
        taught: the stages.
        image: ``1 x 3 x H x W``, 0..1, padded.
        boxes: ``M x 4``, xyxy in its pixels.
        boxes_are: whose they are, in words.
    """
    with torch.no_grad():
        own, theirs = student.features(image), teacher.features(image)
    size = (image.shape[-2], image.shape[-1])
    views = [look(lesson, own, theirs, boxes, size) for lesson in taught]
    return Scene(name, image[0], boxes, boxes_are, taught, views)


def _objects(teacher: Detector, batch: Batch) -> tuple[Tensor, str]:
    """Give what the teacher sees: an image from anywhere has no annotations."""
    if not teacher.class_names:
        return torch.empty(0, 4), "none, the teacher has no head"
    found = detect(teacher, batch)[0]
    return found["boxes"][found["scores"] >= MIN_SCORE], f"the teacher's, score {MIN_SCORE} and more"


def _names(files: Sequence[Path]) -> list[str]:
    """Name the pictures after the images; a number tells those of the same name apart."""
    names: list[str] = []
    for file in files:
        number, name = 1, f"{file.stem}.png"
        while name in (*names, CONTACT_SHEET):
            number += 1
            name = f"{file.stem}-{number}.png"
        names.append(name)
    return names


def _write(path: Path, content: bytes) -> Path:
    write_atomically(path, lambda file: file.write_bytes(content))
    return path
