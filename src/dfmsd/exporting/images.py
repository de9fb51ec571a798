"""The images that a file is compared with its model on."""

from __future__ import annotations

from pathlib import Path

from dfmsd.data.digits import cached_digits
from dfmsd.data.formats import layout_of
from dfmsd.data.inputs import find_images
from dfmsd.errors import DfmsdError
from dfmsd.runfolder import RunFolder


def images_root(model: Path, images: str | Path | None) -> Path:
    """Return the folder of the images.

    Args:
        model: a run folder, or a file in one, if ``images`` is None.
        images: the user's choice, ``digits`` for the built-in data set; None takes the data of the model's run.

    Raises:
        DfmsdError: neither is there.
    """
    root = images or RunFolder(model.parent if model.is_file() else model).data_root()
    if root is None:
        raise DfmsdError(
            f"`images`: required because {model} is not a run folder or a file in one; pass a folder of images"
        )
    return cached_digits() if str(root) == "digits" else Path(root).expanduser()


def images_in(root: Path) -> list[Path]:
    """List the val images of a data set, or the images in a folder."""
    layout = layout_of(root) if root.is_dir() else None
    if layout is None:
        return find_images([root])
    source = layout.find("val") or next(iter(layout.sources.values()))
    return [image["path"] for image in source.read().images]
