"""A static page that runs a student in the browser, with ONNX Runtime Web."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from dfmsd.detectors.base import SHOWN_SCORE
from dfmsd.errors import DfmsdError
from dfmsd.exporting.bundle import EXAMPLE, picture, write_settings
from dfmsd.exporting.exporter import export
from dfmsd.exporting.images import compared_files, images_root
from dfmsd.exporting.results import Exported
from dfmsd.exporting.webruntime import PACKAGE, find_runtime
from dfmsd.utils.files import new_folder, write_text

MAX_NAMES = 10
"""Maximum number of classes that the page names at the top."""
PAGE = Path(__file__).with_name("webpage")
"""What is copied; ``index.html`` is a template."""


def export_web(
    model: str | Path,
    folder: str | Path,
    format: str = "onnx",
    *,
    runtime: str | Path | None = None,
    images: str | Path | None = None,
    image_size: int | None = None,
    nms: str | None = None,
) -> Exported:
    """Export a detector into a page that detects in the browser.

    Args:
        model: see `dfmsd.exporting.exporter.export`, as for the others.
        folder: to create; it must not hold anything.
        format: ``onnx``.
        runtime: folder with the files of onnxruntime-web; None downloads them once with npm.
        images: folder of images or of a data set; the one with the most objects becomes the page's example.
        image_size: side of the square input in pixels.
        nms: ``inside`` or None, which means the same.

    Raises:
        DfmsdError: another format is asked for, the folder exists, or onnxruntime-web is missing; and whatever the
            export raises.
    """
    if format != "onnx" or nms == "outside":
        asked = "`nms` outside" if format == "onnx" else f"`format` {format}"
        raise DfmsdError(f"`web`: the page runs ONNX with suppression inside, not {asked}; leave it out")
    folder = Path(folder)
    with new_folder(folder, "web") as draft:
        files = find_runtime(None if runtime is None else Path(runtime))
        file = draft / "model.onnx"
        exported = export(model, format, out=file, images=images, image_size=image_size)
        write_settings(file, PACKAGE)
        candidates = compared_files(images_root(Path(model), images))
        detector = exported.detector
        best = max(candidates, key=lambda one: len(detector.predict(one, score=SHOWN_SCORE, image_size=exported.side)))
        picture(best).save(draft / EXAMPLE)
        for part in [*PAGE.iterdir(), *files]:
            shutil.copyfile(part, draft / part.name)
        _fill(draft / "index.html", Path(model).resolve().name, detector.class_names)
    return exported._replace(file=folder / file.name)


def _fill(page: Path, name: str, class_names: Sequence[str]) -> None:
    """Fill the template in its place."""
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    names = ", ".join(class_names[:MAX_NAMES])
    more = len(class_names) - MAX_NAMES
    template = environment.from_string(page.read_text(encoding="utf-8"))
    write_text(page, template.render(name=name, classes=names + (f" and {more} more classes" if more > 0 else "")))
