"""Conversion of Pascal VOC and YOLO data sets to the COCO layout, with supervision."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from xml.etree.ElementTree import ParseError

import yaml

from dfmsd.errors import DfmsdError
from dfmsd.utils.extras import check_extra
from dfmsd.utils.files import is_taken

if TYPE_CHECKING:
    from supervision import DetectionDataset

Layout = Literal["voc", "yolo"]
Splits = dict[str, "DetectionDataset"]
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation")}
"""Split -> its names in folders and keys of other layouts."""


def convert(source: Path, layout: Layout, out: Path) -> dict[str, tuple[int, int]]:
    """Write ``out/annotations/instances_{train,val}.json`` and ``out/{train,val}/``; images are copied.

    Args:
        source: Folder. ``yolo``: ``data.yaml`` lists the classes and the image folders ``train`` and ``val``; labels
            are in ``labels`` where images are in ``images``. ``voc``: ``Annotations``, ``JPEGImages`` and
            ``ImageSets/Main/{train,val}.txt``, or folders ``train`` and ``val`` (``valid``) of images and XML files.
        layout: Layout of the source.
        out: New or empty folder; it is created in one step.

    Returns:
        Split -> number of images and number of boxes.

    Raises:
        DfmsdError: supervision is missing, or a part of the source is missing or cannot be read.
    """
    check_extra("convert", ["supervision"], "convert")
    if is_taken(out):
        raise DfmsdError(f"{out} is not empty; choose a new folder with --out")
    readers: dict[Layout, Callable[[Path], Splits]] = {"voc": _read_voc, "yolo": _read_yolo}
    try:
        splits = _unify_classes(readers[layout](source))
    except DfmsdError:
        raise
    except (ValueError, KeyError, ParseError, OSError, AttributeError) as error:
        raise DfmsdError(f"{source}: cannot be read as {layout}: {str(error) or type(error).__name__}") from error
    return _write(splits, out)


def _read_yolo(source: Path) -> Splits:
    from supervision import DetectionDataset

    file = source / "data.yaml"
    content = yaml.safe_load(_require(file).read_text(encoding="utf-8"))
    splits: Splits = {}
    for split, aliases in SPLITS.items():
        images = _yolo_images(source, content, aliases)
        position = max((i for i, part in enumerate(images.parts) if part == "images"), default=None)
        if position is None:
            raise DfmsdError(f"{file}: {split}: {images} is not inside a folder `images` that has a sibling `labels`")
        labels = Path(*images.parts[:position], "labels", *images.parts[position + 1 :])
        splits[split] = DetectionDataset.from_yolo(str(images), str(_require(labels)), str(file))
    return splits


def _yolo_images(source: Path, content: Any, aliases: tuple[str, ...]) -> Path:
    """Find a split's images in ``path``, in the folder of ``data.yaml``, or next to it, as with Roboflow's ``../``."""
    if not isinstance(content, Mapping):
        raise DfmsdError(f"{source / 'data.yaml'}: expected keys such as names, train and val")
    value = next((content[alias] for alias in aliases if isinstance(content.get(alias), str)), None)
    if value is None:
        raise DfmsdError(f"{source / 'data.yaml'}: {aliases[0]} is missing; give the folder of its images")
    for root in (source / str(content.get("path", "")), source, source / "-"):  # `-/../x` is `x` in source
        folder = Path(root, str(value)).resolve()
        if folder.is_dir():
            return folder
    raise DfmsdError(f"{source / 'data.yaml'}: {aliases[0]}: no folder {value} in {source}; correct the path")


def _read_voc(source: Path) -> Splits:
    from supervision import DetectionDataset

    if not (source / "Annotations").is_dir():
        return {
            split: DetectionDataset.from_pascal_voc(folder, folder)
            for split, aliases in SPLITS.items()
            for folder in [str(_first_folder(source, aliases))]
        }
    whole = DetectionDataset.from_pascal_voc(str(_require(source / "JPEGImages")), str(source / "Annotations"))
    by_stem = {Path(image).stem: image for image in whole.image_paths}
    splits: Splits = {}
    for split in SPLITS:
        file = _require(source / "ImageSets" / "Main" / f"{split}.txt")
        stems = file.read_text(encoding="utf-8").split()
        missing = [stem for stem in stems if stem not in by_stem]
        if missing:
            raise DfmsdError(f"{file}: no image {missing[0]} in {source / 'JPEGImages'}; add it or remove the line")
        images = [by_stem[stem] for stem in stems]
        splits[split] = DetectionDataset(whole.classes, images, {image: whole.annotations[image] for image in images})
    return splits


def _first_folder(source: Path, aliases: tuple[str, ...]) -> Path:
    for alias in aliases:
        if (source / alias).is_dir():
            return source / alias
    raise DfmsdError(f"{source} has neither Annotations nor a folder {aliases[0]} of images and XML files")


def _require(path: Path) -> Path:
    if not path.exists():
        raise DfmsdError(f"{path} is missing; see dfmsd convert --help for the layouts")
    return path


def _unify_classes(splits: Splits) -> Splits:
    """Number the classes of all splits alike: in VOC they are numbered in order of appearance."""
    from supervision import DetectionDataset

    lists = {tuple(data.classes) for data in splits.values()}
    classes = list(lists.pop()) if len(lists) == 1 else sorted({name for names in lists for name in names})
    for split, data in splits.items():
        if not len(data):
            raise DfmsdError(f"{split} has no images; add some")
        for detections in data.annotations.values():
            if detections.class_id is not None:
                detections.class_id[:] = [classes.index(data.classes[label]) for label in detections.class_id]
        splits[split] = DetectionDataset(classes, data.image_paths, data.annotations)
    return splits


def _write(splits: Splits, out: Path) -> dict[str, tuple[int, int]]:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        complete = Path(folder, "complete")
        for split, data in splits.items():
            data.as_coco(str(complete / split), str(complete / "annotations" / f"instances_{split}.json"))
        if out.exists():
            out.rmdir()
        shutil.move(complete, out)
    return {split: (len(data), sum(map(len, data.annotations.values()))) for split, data in splits.items()}
