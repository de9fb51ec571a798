"""Pictures of attention, masks and errors for image files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from dfmsd.data.inputs import find_images, to_batch
from dfmsd.detectors import Detector, load_detector
from dfmsd.detectors.base import SHOWN_SCORE
from dfmsd.errors import DfmsdError
from dfmsd.evaluation.evaluate import detect
from dfmsd.evaluation.recording import read_noted, unreadable_error
from dfmsd.types import Batch
from dfmsd.utils.files import check_writable, make_folder, refuse_others_files, write_atomically
from dfmsd.visualization.criteria import stage_criteria
from dfmsd.visualization.figures import draw_contact_sheet, draw_scene, render_png
from dfmsd.visualization.scene import build_scene

CONTACT_SHEET = "contact_sheet.png"


def visualize(model: str | Path, teacher: str | Path, images: Sequence[str | Path], out: str | Path) -> list[Path]:
    """Write one PNG per image and a contact sheet.

    Args:
        model: the student; the reconstruction needs its run folder, which has the training-only layers.
        teacher: see `dfmsd.detectors.load_detector`.
        images: image files, and folders of images.
        out: output folder, created if missing; files of an earlier call are replaced.

    Returns:
        The files written, the contact sheet last.

    Raises:
        DfmsdError: a detector or image does not exist, the detectors do not fit each other, a picture would replace a
            file that no earlier call has written, or images cannot be read; if others can, these are done first.
    """
    model, teacher, out = str(model), str(teacher), Path(out)
    files = find_images(images, exclude=out)
    names = picture_names(files)
    refuse_others_files([out / name for name in names], out / CONTACT_SHEET)
    check_writable(out)
    student, detector = load_detector(model), load_detector(teacher)
    stages = stage_criteria(model, student, teacher, detector)
    if not stages:
        raise DfmsdError(
            f"{model} learned the predictions of the queries of {teacher}, not its feature maps, so there is nothing "
            "to draw; name a run with a loss on features"
        )
    size = student.choose_size()
    make_folder(out)
    scenes, written = [], []
    unreadable: dict[Path, str] = {}
    try:
        for file, name in zip(files, names, strict=True):
            pixels = read_noted(file, unreadable)
            if pixels is None:
                continue
            batch, seen_at = to_batch(pixels, size), stages[0].teacher_size
            larger = None if seen_at is None else to_batch(pixels, seen_at).images
            boxes, source = _teacher_boxes(detector, batch)
            scenes.append(build_scene(file.name, student, detector, stages, batch.images, boxes, source, larger))
            written.append(_write(out / name, render_png(draw_scene(scenes[-1]))))
    finally:  # also of what was drawn before Ctrl-C, so that the same call can be repeated
        if scenes:
            written.append(_write(out / CONTACT_SHEET, render_png(draw_contact_sheet(scenes))))
    if unreadable:
        raise unreadable_error(unreadable, len(files), out / CONTACT_SHEET)
    return written


def picture_names(files: Iterable[Path]) -> list[str]:
    """Name pictures after their images, with a number to distinguish equal names.

    Takes time linear in the number of files.
    """
    names: list[str] = []
    taken = {CONTACT_SHEET}
    numbers: dict[str, Iterator[int]] = defaultdict(lambda: count(1))
    for file in files:
        candidates = (_numbered(file.stem, number) for number in numbers[file.stem])
        names.append(next(name for name in candidates if name not in taken))
        taken.add(names[-1])
    return names


def _numbered(stem: str, number: int) -> str:
    return f"{stem}.png" if number == 1 else f"{stem}-{number}.png"


def _teacher_boxes(teacher: Detector, batch: Batch) -> tuple[Tensor, str]:
    """Return the teacher's detections, since arbitrary images have no annotations, and their source."""
    if not teacher.class_names:
        return torch.empty(0, 4), "none, the teacher has no head"
    detections = detect(teacher, batch)[0]
    return detections["boxes"][detections["scores"] >= SHOWN_SCORE], f"teacher detections, score at least {SHOWN_SCORE}"


def _write(path: Path, content: bytes) -> Path:
    write_atomically(path, lambda file: file.write_bytes(content))
    return path
