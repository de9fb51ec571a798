"""Data sets in the layouts of Pascal VOC and YOLO, turned into the COCO layout by supervision."""

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
"""Split here -> what folders and keys of other layouts call it."""


def convert(source: Path, layout: Layout, out: Path) -> dict[str, tuple[int, int]]:
    """Write ``out/annotations/instances_{train,val}.json`` and ``out/{train,val}/``; images are copied.

    Args:
        source: a folder. ``yolo``: with a ``data.yaml`` that names classes and the image folders ``train`` and ``val``;
            labels lie in ``labels`` where images lie in ``images``. ``voc``: ``Annotations``, ``JPEGImages`` and
            ``ImageSets/Main/{train,val}.txt``, or folders ``train`` and ``val`` (``valid``) with images and XML.
        layout: of the source.
        out: a folder that is not there yet or is empty; it is made in one step.

    Returns:
        Split -> number of images and of boxes.

    Raises:
        DfmsdError: supervision is missing, or what of the source is missing or cannot be read.
    """
    check_extra("convert", ["supervision"], "convert")
    if is_taken(out):
        raise DfmsdError(f"{out} is not empty; name a new folder with --out")
    read: dict[Layout, Callable[[Path], Splits]] = {"voc": _read_voc, "yolo": _read_yolo}
    try:
        splits = _one_class_list(read[layout](source))
    except DfmsdError:
        raise
    except (ValueError, KeyError, ParseError, OSError, AttributeError) as error:
        raise DfmsdError(f"{source}: cannot be read as {layout}: {str(error) or type(error).__name__}") from error
    return _write(splits, out)


def _read_yolo(source: Path) -> Splits:
    from supervision import DetectionDataset

    names = source / "data.yaml"
    described = yaml.safe_load(_existing(names).read_text(encoding="utf-8"))
    splits: Splits = {}
    for split, aliases in SPLITS.items():
        images = _yolo_images(source, described, aliases)
        position = max((i for i, part in enumerate(images.parts) if part == "images"), default=None)
        if position is None:
            raise DfmsdError(f"{names}: {split}: {images} is not below a folder `images`, beside which `labels` lies")
        labels = Path(*images.parts[:position], "labels", *images.parts[position + 1 :])
        splits[split] = DetectionDataset.from_yolo(str(images), str(_existing(labels)), str(names))
    return splits


def _yolo_images(source: Path, described: Any, aliases: tuple[str, ...]) -> Path:
    """Find a split's images: below ``path``, below the file's folder, or beside it where Roboflow's ``../`` points."""
    if not isinstance(described, Mapping):
        raise DfmsdError(f"{source / 'data.yaml'}: expected keys such as names, train and val")
    value = next((described[alias] for alias in aliases if isinstance(described.get(alias), str)), None)
    if value is None:
        raise DfmsdError(f"{source / 'data.yaml'}: {aliases[0]} is missing; give the folder of its images")
    for root in (source / str(described.get("path", "")), source, source / "-"):  # `-/..` is the folder itself
        folder = Path(root, str(value)).resolve()
        if folder.is_dir():
            return folder
    raise DfmsdError(f"{source / 'data.yaml'}: {aliases[0]}: there is no folder {value} in {source}")


def _read_voc(source: Path) -> Splits:
    from supervision import DetectionDataset

    if not (source / "Annotations").is_dir():
        return {
            split: DetectionDataset.from_pascal_voc(folder, folder)
            for split, aliases in SPLITS.items()
            for folder in [str(_first_folder(source, aliases))]
        }
    whole = DetectionDataset.from_pascal_voc(str(_existing(source / "JPEGImages")), str(source / "Annotations"))
    by_stem = {Path(image).stem: image for image in whole.image_paths}
    splits: Splits = {}
    for split in SPLITS:
        file = _existing(source / "ImageSets" / "Main" / f"{split}.txt")
        stems = file.read_text(encoding="utf-8").split()
        missing = [stem for stem in stems if stem not in by_stem]
        if missing:
            raise DfmsdError(f"{file}: there is no image {missing[0]} in {source / 'JPEGImages'}")
        images = [by_stem[stem] for stem in stems]
        splits[split] = DetectionDataset(whole.classes, images, {image: whole.annotations[image] for image in images})
    return splits


def _first_folder(source: Path, aliases: tuple[str, ...]) -> Path:
    for alias in aliases:
        if (source / alias).is_dir():
            return source / alias
    raise DfmsdError(f"{source}: there is neither Annotations nor a folder {aliases[0]} with images and XML files")


def _existing(path: Path) -> Path:
    if not path.exists():
        raise DfmsdError(f"{path} is missing; see dfmsd convert --help for the layouts")
    return path


def _one_class_list(splits: Splits) -> Splits:
    """Give all splits the same classes under the same numbers: in VOC they are numbered as they turn up."""
    from supervision import DetectionDataset

    lists = {tuple(data.classes) for data in splits.values()}
    classes = list(lists.pop()) if len(lists) == 1 else sorted({name for names in lists for name in names})
    for split, data in splits.items():
        if not len(data):
            raise DfmsdError(f"{split}: there is no image in it")
        for found in data.annotations.values():
            if found.class_id is not None:
                found.class_id[:] = [classes.index(data.classes[number]) for number in found.class_id]
        splits[split] = DetectionDataset(classes, data.image_paths, data.annotations)
    return splits


def _write(splits: Splits, out: Path) -> dict[str, tuple[int, int]]:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        made = Path(folder, "made")
        for split, data in splits.items():
            data.as_coco(str(made / split), str(made / "annotations" / f"instances_{split}.json"))
        if out.exists():
            out.rmdir()
        shutil.move(made, out)
    return {
        split: (len(data), sum(len(found) for found in data.annotations.values())) for split, data in splits.items()
    }
