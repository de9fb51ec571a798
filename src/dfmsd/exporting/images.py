"""Images to compare a file on, to calibrate it with, and to measure its AP on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor
from torch.utils.data import DataLoader

from dfmsd.data import DataConfig
from dfmsd.data.dataset import DetectionDataset
from dfmsd.data.digits import cached_digits
from dfmsd.data.formats import Layout, layout_of
from dfmsd.data.images import read_image
from dfmsd.data.inputs import find_images, to_batch
from dfmsd.data.loading import split_loader
from dfmsd.data.remote import local_root
from dfmsd.data.splitcheck import check_measurable
from dfmsd.data.transforms import Sample
from dfmsd.errors import DfmsdError
from dfmsd.evaluation.evaluate import match_classes
from dfmsd.runfolder import RunFolder

MAX_IMAGES = 50
"""Maximum number of images for the comparison."""
CALIBRATION_IMAGES = 100


def images_root(model: Path, images: str | Path | None) -> Path:
    """Return the folder of the images.

    Args:
        model: a run folder, or a file in one, if ``images`` is None.
        images: the user's choice, ``digits`` for the built-in data set; None takes the data of the model's run.

    Raises:
        DfmsdError: neither is there, or the run's data are not on this machine.
    """
    root = images or RunFolder(model.parent if model.is_file() else model).data_root()
    if root is None:
        raise DfmsdError(
            f"`images`: required because {model} is not a run folder or a file in one; pass a folder of images"
        )
    if str(root) == "digits":
        return cached_digits()
    folder = local_root(root)
    if images is None and not folder.exists():
        raise DfmsdError(
            f"`images`: required because {folder.absolute()}, the data set of the model's run, does not exist; "
            "pass a folder, or go where the run was started if its data.root is relative"
        )
    return folder


def images_in(root: Path) -> list[Path]:
    """List the val images of a data set, or the images in a folder."""
    layout = _layout(root)
    return find_images([root]) if layout is None else _files(layout, _val(layout))


def compared_files(root: Path) -> list[Path]:
    """List the images that a file is compared with its model on, the first of `images_in`."""
    return images_in(root)[:MAX_IMAGES]


def calibration_files(root: Path) -> list[Path]:
    """List images that are evenly spread over the train split of a data set, or over the images in a folder."""
    layout = _layout(root)
    files = _files(layout, "train") if layout and layout.find("train") else images_in(root)
    return spread(files, CALIBRATION_IMAGES)


def open_val(root: Path, side: int, class_names: Sequence[str]) -> DataLoader[Sample] | None:
    """Return a loader of the val split of a data set, or None for a folder of images.

    Args:
        root: of the data set.
        side: longer side of the images after resizing, in pixels.
        class_names: of the detector.

    Raises:
        DfmsdError: the split is damaged, holds no object, or shares no class with the detector.
    """
    layout = _layout(root)
    if layout is None:
        return None
    loader = split_loader(DataConfig(root=str(root), image_size=side), _val(layout))
    assert isinstance(loader.dataset, DetectionDataset)
    check_measurable(loader.dataset.coco)
    match_classes(class_names, loader.dataset.coco)
    return loader


def open_images(files: Sequence[Path], side: int) -> Iterator[Tensor]:
    """Read images as inputs, each ``1 x 3 x side x side``."""
    return (to_batch(read_image(file), side).images for file in files)


def spread(files: Sequence[Path], count: int) -> list[Path]:
    """Select at most ``count`` files at equal distances."""
    return list(files[:: max(1, -(-len(files) // count))])


def _layout(root: Path) -> Layout | None:
    return layout_of(root) if root.is_dir() else None


def _val(layout: Layout) -> str:
    return "val" if layout.find("val") else next(iter(layout.sources))


def _files(layout: Layout, split: str) -> list[Path]:
    source = layout.find(split)
    assert source is not None
    return [image["path"] for image in source.read().images]
