"""Images without annotations, for distillation and pseudo-labels."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torchvision.ops import box_convert, clip_boxes_to_image

from dfmsd.data.images import list_images, read_size
from dfmsd.data.records import ImageRecord
from dfmsd.errors import DfmsdError
from dfmsd.utils.boxes import has_area

logger = logging.getLogger("dfmsd")


def unlabeled_records(folder: str | Path, exclude: Collection[Path] = ()) -> list[ImageRecord]:
    """List the images in a folder and its subfolders; only their headers are read.

    Args:
        folder: Folder of images; other files are ignored.
        exclude: Images to skip: those of the data set itself.

    Returns:
        Records without boxes, sorted by path; ids are -1, -2, ...

    Raises:
        DfmsdError: The folder does not exist, an image is broken, or no image is left.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise DfmsdError(f"data.unlabeled: no folder {folder.absolute()}; give a folder of images")
    found = list_images(folder)
    excluded = {path.resolve() for path in exclude}
    paths = [path for path in found if path.resolve() not in excluded]
    if not paths:
        raise DfmsdError(
            f"data.unlabeled: {folder} holds {len(found)} images, and none besides those of data.root; give a folder "
            "with others, or leave data.unlabeled out"
        )
    if len(paths) < len(found):
        logger.warning("%s: skipping %d images that belong to data.root", folder, len(found) - len(paths))
    return [_to_record(-number, path) for number, path in enumerate(paths, 1)]


def with_boxes(
    records: Sequence[ImageRecord],
    content: Mapping[str, Any],
    folder: str | Path,
    category_ids: Sequence[int],
    *,
    soft: bool = False,
) -> list[ImageRecord]:
    """Give unlabeled images the boxes of a COCO file; those without a box there stay unlabeled, and come last.

    Args:
        records: See `unlabeled_records`.
        content: Contents of the file; its file names are relative to ``folder``.
        folder: Folder of the images.
        category_ids: Category id of each label.
        soft: Give the boxes the scores of the file, too.

    Raises:
        DfmsdError: The file does not have one of the images.
    """
    folder, label_of = Path(folder).expanduser(), {number: label for label, number in enumerate(category_ids)}
    ids = {image["file_name"]: image["id"] for image in content["images"]}
    found: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for annotation in content["annotations"]:
        found[annotation["image_id"]].append(annotation)
    labeled: list[ImageRecord] = []
    others: list[ImageRecord] = []
    for record in records:
        name = record.path.relative_to(folder).as_posix()
        if name not in ids:
            raise DfmsdError(
                f"data.unlabeled: there are no pseudo-labels of {name}, since {folder} had other images when the run "
                "began; restore them, or start again"
            )
        annotations = found[ids[name]]
        boxes = torch.tensor([annotation["bbox"] for annotation in annotations], dtype=torch.float64).reshape(-1, 4)
        boxes = clip_boxes_to_image(box_convert(boxes, "xywh", "xyxy"), (record.height, record.width)).float()
        labels = torch.tensor([label_of[annotation["category_id"]] for annotation in annotations], dtype=torch.int64)
        keep = has_area(boxes)
        record = record._replace(boxes=boxes[keep], labels=labels[keep], labeled=bool(keep.any()))
        if soft:
            record = record._replace(scores=torch.tensor([annotation["score"] for annotation in annotations])[keep])
        (labeled if record.labeled else others).append(record)
    return [*labeled, *others]


def _to_record(image_id: int, path: Path) -> ImageRecord:
    height, width = read_size(path)
    boxes, labels = torch.empty(0, 4), torch.empty(0, dtype=torch.int64)
    return ImageRecord(image_id, path, height, width, boxes, labels, labeled=False)
