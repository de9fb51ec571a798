"""A folder that detects without dfmsd: model, class names, preprocessing, a script, and an image with its boxes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.ops import clip_boxes_to_image

from dfmsd.data.images import read_image
from dfmsd.data.inputs import to_batch
from dfmsd.detectors import Detector
from dfmsd.detectors.base import SCORE_THRESHOLD, SHOWN_SCORE
from dfmsd.detectors.prediction import Prediction, to_prediction
from dfmsd.errors import DfmsdError, one_line
from dfmsd.exporting.choice import choose_format
from dfmsd.exporting.exporter import export
from dfmsd.exporting.images import compared_files, images_root
from dfmsd.exporting.results import Agreement, Exported
from dfmsd.exporting.standalone import infer
from dfmsd.utils.files import new_folder, write_json, write_text

RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino", "ncnn": "ncnn", "litert": "ai-edge-litert"}
"""Format -> package of its runtime on PyPI, none of which needs PyTorch."""
EXAMPLE = "test.png"
PIXELS, SCORES = 1.0, 0.02
"""Largest difference from the model, in pixels of the input and in scores: Pillow and PyTorch round resized pixels
differently, by at most 2 of 255."""
README = """\
# {name}

An object detector with {classes} classes, for {runtime}. It needs no PyTorch, and was checked with {versions}.

```bash
pip install numpy pillow {runtime}
python infer.py --check                # the test image has the boxes of expected.json
python infer.py photo.jpg --out drawn  # prints the objects, and draws them
```

| file | |
|---|---|
| `{model}` | the network, for images of {side} x {side} pixels |
| `labels.txt` | the names of the classes, in the order of their numbers |
| `preprocess.json` | what is to be done before and after the network |
| `infer.py` | all of it in NumPy and Pillow, as a command and as `infer.Detector` |
| `{example}`, `expected.json` | an image, and the boxes that the model finds in PyTorch |

In {images} images `infer.py` finds {again} of the {objects} objects that the model finds in PyTorch, and {new} others.
"""


def export_bundle(
    model: str | Path,
    folder: str | Path,
    format: str = "onnx",
    *,
    images: str | Path | None = None,
    image_size: int | None = None,
    int8: bool = False,
    nms: str | None = None,
) -> Exported:
    """Export a detector into a folder with everything needed to run it, and run it there.

    Args:
        model: see `dfmsd.exporting.exporter.export`, as for the others.
        folder: to create; it must not hold anything.
        format: one of `RUNTIMES`.
        images: folder of images or of a data set; one of the images goes into the folder.
        image_size: side of the square input in pixels.
        int8: also write a quantized file.
        nms: suppression ``inside`` or ``outside`` of the file; the script does the latter.

    Raises:
        DfmsdError: the script does not run the format, the folder exists, or the script finds other objects than the
            model; and whatever the export raises.
    """
    form = choose_format(format, nms)
    if format not in RUNTIMES:
        raise DfmsdError(
            f"`bundle`: infer.py does not run `format` {format}; the formats that it runs are {', '.join(RUNTIMES)}"
        )
    folder = Path(folder)
    with new_folder(folder, "bundle") as draft:
        file = draft / f"model{form.suffix}"
        exported = export(model, format, out=file, images=images, image_size=image_size, int8=int8, nms=nms)
        write_settings(file, RUNTIMES[format])
        shutil.copyfile(str(infer.__file__), draft / "infer.py")
        files = compared_files(images_root(Path(model), images))
        agreement = _write_example(draft, exported.detector, files, exported.side, inside=form.whole)
        _write_readme(draft, Path(model).resolve().name, exported, agreement)
        _check(draft)
    quantized = exported.quantized and exported.quantized._replace(file=folder / exported.quantized.file.name)
    return exported._replace(file=folder / file.name, quantized=quantized, script=agreement)


def write_settings(file: Path, runtime: str) -> None:
    """Turn the description next to a model file into ``preprocess.json`` and ``labels.txt``.

    Args:
        file: the model file.
        runtime: the package that runs it.
    """
    described = file.with_name(f"{file.name}.json")
    settings = json.loads(described.read_text(encoding="utf-8"))
    described.unlink()
    labels = [" ".join(name.split()) for name in settings.pop("class_names")]
    write_json(file.with_name("preprocess.json"), {"model": file.name, "runtime": runtime, **settings})
    write_text(file.with_name("labels.txt"), "".join(f"{label}\n" for label in labels))


def _write_example(folder: Path, detector: Detector, files: Sequence[Path], side: int, *, inside: bool) -> Agreement:
    """Write the image with the most objects among those where the script finds what the file's network does.

    Args:
        folder: of the script.
        detector: the model.
        files: images.
        side: of the input, in pixels.
        inside: whether the file suppresses, and so counts the padding as image.

    Raises:
        DfmsdError: there is no such image.
    """
    script = infer.Detector(folder)
    found = [infer.describe(script(picture(file), 0.0), script.labels) for file in files]
    as_model = [detect_padded(detector, file, side) for file in files]
    as_file = [
        detect_padded(detector, file, side, padding=True) if inside and not _is_square(one) else one
        for file, one in zip(files, as_model, strict=True)
    ]
    for score in (SHOWN_SCORE, SCORE_THRESHOLD):  # short trainings may not reach the first
        answers = [expected_objects(one, detector, side, score) for one in as_file]
        same = [
            (len(one["objects"]), place)
            for place, one in enumerate(answers)
            if one["objects"] and not any(infer.compare(one, found[place])[:2])
        ]
        if same:
            _, best = max(same)
            picture(files[best]).save(folder / EXAMPLE)
            write_json(folder / "expected.json", answers[best])
            return _agreement([expected_objects(one, detector, side, score) for one in as_model], found)
    raise DfmsdError(
        f"`bundle`: in none of {len(files)} images infer.py finds what the model finds; try other `images`, or train"
        " the model longer"
    )


def _agreement(expected: Sequence[dict[str, Any]], found: Sequence[list[dict[str, Any]]]) -> Agreement:
    compared = [infer.compare(*both) for both in zip(expected, found, strict=True)]
    return Agreement(
        images=len(expected),
        objects=sum(len(one["objects"]) for one in expected),
        again=sum(len(one.gaps) for one in compared),
        new=sum(len(one.new) for one in compared),
    )


def detect_padded(detector: Detector, file: Path, side: int, *, padding: bool = False) -> Prediction:
    """Return all that a model finds in an image, padded to a square.

    Args:
        detector: the model, in eval mode.
        file: the image.
        side: of the input, in pixels.
        padding: count the padding as image until the boxes are suppressed, as a file does that suppresses.
    """
    image = read_image(file)
    batch = to_batch(image, side)
    (size,), (scale,) = batch.sizes, batch.scales
    with torch.no_grad():
        (detections,) = detector.detect(batch.images, [(side, side) if padding else size])
    detections["boxes"] = clip_boxes_to_image(detections["boxes"], size)
    return to_prediction(detections, image, scale, detector.class_names, 0.0)


def expected_objects(found: Prediction, detector: Detector, side: int, score: float) -> dict[str, Any]:
    """Return what a model finds in an image, as in ``expected.json``.

    Args:
        found: all of it, see `detect_padded`.
        detector: the model.
        side: of the input, in pixels.
        score: lowest score of an object.
    """
    kept = found.scores >= score
    boxes, scores, labels = (values[kept].numpy() for values in (found.boxes, found.scores, found.labels))
    objects = infer.describe(infer.Detections(boxes, scores, labels), list(detector.class_names))
    tolerance = {"pixels": round(PIXELS * max(1.0, max(found.image_size) / side), 2), "score": SCORES}
    return {"image": EXAMPLE, "score": score, "tolerance": tolerance, "objects": objects}


def _is_square(found: Prediction) -> bool:
    """Return whether an image has no padding in a square input."""
    height, width = found.image_size
    return height == width


def picture(file: Path) -> Image.Image:
    """Return the pixels of an image without what else its file says, such as where it was taken."""
    return Image.fromarray(read_image(file).permute(1, 2, 0).numpy())


def _write_readme(folder: Path, name: str, exported: Exported, agreement: Agreement) -> None:
    settings = json.loads((folder / "preprocess.json").read_text(encoding="utf-8"))
    packages = ("numpy", "pillow", settings["runtime"])
    text = README.format(
        name=name,
        classes=len((folder / "labels.txt").read_text(encoding="utf-8").splitlines()),
        side=exported.side,
        model=settings["model"],
        runtime=settings["runtime"],
        versions=", ".join(f"{package} {version(package)}" for package in packages),
        example=EXAMPLE,
        **agreement._asdict(),
    )
    write_text(folder / "README.md", text)


def _check(folder: Path) -> None:
    """Run the script's own check, as a user will."""
    command = [sys.executable, str(folder / "infer.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DfmsdError(
            f"`bundle`: infer.py --check fails ({one_line(done.stdout + done.stderr)}); nothing is written"
        )
