"""Folders that detect without dfmsd: of every student, in an environment of their own, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers.exports import need, tiny
from tests.helpers.fixtures import TINY_CATEGORIES
from torch import Tensor
from torchvision import ops

import dfmsd
from dfmsd.data.images import read_image
from dfmsd.detectors import Detector, load_detector, save_detector
from dfmsd.errors import DfmsdError
from dfmsd.exporting import bundle, exporter
from dfmsd.exporting.bundle import export_bundle
from dfmsd.exporting.results import Agreement
from dfmsd.exporting.standalone import infer
from dfmsd.exporting.verify import ExportedDetector
from dfmsd.types import Detections

FILES = {"README.md", "expected.json", "infer.py", "labels.txt", "model.onnx", "preprocess.json", "test.png"}


@pytest.fixture
def pictures(tiny_root: Path, tmp_path: Path) -> Path:
    """A folder of images of several sizes and shapes, one of them turned by its EXIF data."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for place, file in enumerate(sorted((tiny_root / "val").iterdir())):
        image = Image.open(file)
        image.resize((image.width * (place + 1), image.height * 2)).save(folder / f"{place}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.convert("RGB").save(folder / "turned.jpg", exif=exif)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "format", "nms"),
    [
        *((arch, "onnx", nms) for arch in ("fcos", "retinanet", "gfl", "ssdlite") for nms in ("inside", "outside")),
        ("fcos", "openvino", "inside"),
        ("fcos", "ncnn", "outside"),
        ("fcos", "litert", "outside"),
    ],
    indirect=["model"],
)
def test_every_student_in_every_runtime(model: Path, format: str, nms: str, pictures: Path, tmp_path: Path) -> None:
    need(format)
    found = export_bundle(model, tmp_path / "new" / "bundle", format, images=pictures, image_size=96, nms=nms)
    folder = tmp_path / "new" / "bundle"
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]
    assert found.file.parent == folder
    assert found.file.is_file()
    assert found.script is not None
    assert found.script.images == 5
    assert found.script.objects >= 5
    assert (folder / "labels.txt").read_text() == "a\nb\nc\n"
    if nms == "outside":  # otherwise the padding counts as image
        assert found.script.again >= 0.9 * found.script.objects
        expected = json.loads((folder / "expected.json").read_text())
        prediction = load_detector(model).predict(folder / "test.png", score=expected["score"], image_size=96)
        assert np.allclose(prediction.boxes, [one["box"] for one in expected["objects"]], atol=0.01)
    assert infer.Detector(folder).labels == ["a", "b", "c"]
    assert f"{found.script.again} of the {found.script.objects} objects" in (folder / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["faster_rcnn"], indirect=True)
def test_two_stages_agree_where_nothing_is_resized(model: Path, pictures: Path, tmp_path: Path) -> None:
    need("onnx")
    for file in pictures.iterdir():
        Image.open(file).resize((96, 96)).save(file.with_suffix(".png"))
    (pictures / "turned.jpg").unlink()
    found = export_bundle(model, tmp_path / "bundle", images=pictures, image_size=96).script
    assert found is not None
    assert found.objects >= 5
    assert found.again >= 0.9 * found.objects


@pytest.mark.slow
@pytest.mark.network
def test_it_runs_in_a_bare_environment(model: Path, pictures: Path, tmp_path: Path) -> None:
    need("onnx")
    for nms in ("inside", "outside"):
        export_bundle(model, tmp_path / nms, images=pictures, image_size=96, nms=nms)
        assert {path.name for path in (tmp_path / nms).iterdir()} == FILES
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "bare"], check=True)
    python = tmp_path / "bare" / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*install, "numpy", "pillow", "onnxruntime"], check=True)
    for nms in ("inside", "outside"):
        script = [python, tmp_path / nms / "infer.py"]
        done = subprocess.run([*script, "--check"], capture_output=True, text=True, check=True)
        assert " agree; largest differences " in done.stdout
        subprocess.run([*script, pictures, "--out", tmp_path / f"{nms}-drawn"], check=True)
        assert len(list((tmp_path / f"{nms}-drawn").iterdir())) == 5


@pytest.mark.slow
def test_the_int8_file_runs_too(tiny_root: Path, tmp_path: Path) -> None:
    need("onnx")
    model = tmp_path / "model"
    save_detector(tiny("fcos", TINY_CATEGORIES.values()), model)
    found = export_bundle(model, tmp_path / "bundle", images=tiny_root, image_size=96, int8=True)
    assert found.quantized is not None
    assert found.quantized.file == tmp_path / "bundle" / "model.int8.onnx"
    detector = infer.Detector(tmp_path / "bundle", found.quantized.file.name)
    assert len(detector(Image.open(tmp_path / "bundle" / "test.png"), 0.05).boxes)


def test_the_example_is_the_image_with_the_most_objects_that_agree(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script that knows what the model finds, but shifts the boxes of the image with the most objects."""
    detector = tiny("fcos")
    files = sorted(pictures.iterdir())
    answers = [
        bundle.expected_objects(bundle.detect_padded(detector, file, 96), detector, 96, 0.05)["objects"]
        for file in files
    ]
    counts = [sum(one["score"] >= 0.3 for one in objects) for objects in answers]
    wrong = counts.index(max(counts))

    class Script:
        labels = ("a", "b", "c")

        def __init__(self, _folder: Path) -> None: ...

        def __call__(self, image: Image.Image, _score: float) -> infer.Detections:
            (place,) = [n for n, file in enumerate(files) if np.array_equal(image, read_image(file).permute(1, 2, 0))]
            boxes = np.array([one["box"] for one in answers[place]]) + (5 if place == wrong else 0)
            scores, classes = (np.array([one[key] for one in answers[place]]) for key in ("score", "class"))
            return infer.Detections(boxes, scores, classes)

    monkeypatch.setattr(infer, "Detector", Script)
    detect, seen = detector.detect, []
    monkeypatch.setattr(detector, "detect", lambda images, sizes: seen.append(sizes) or detect(images, sizes))
    found = bundle._write_example(tmp_path, detector, files, 96, inside=False)
    assert len(seen) == len(files)  # the model runs once in each image
    assert found == Agreement(len(files), sum(counts), sum(counts) - counts[wrong], counts[wrong])
    counts[wrong] = 0
    best = max(range(len(files)), key=lambda place: (counts[place], place))
    expected = json.loads((tmp_path / "expected.json").read_text())
    assert [one["box"] for one in expected["objects"]] == [one["box"] for one in answers[best] if one["score"] >= 0.3]
    assert np.array_equal(Image.open(tmp_path / "test.png"), read_image(files[best]).permute(1, 2, 0))
    with pytest.raises(DfmsdError, match=r"in none of 1 images infer\.py finds what the model finds"):
        bundle._write_example(tmp_path, detector, [files[wrong]], 96, inside=False)


class Two(ExportedDetector):
    """Finds two boxes, of which the square input holds 64 and 44 rows, and its upper half 32 and 12."""

    def __init__(self) -> None:
        super().__init__(lambda _: pytest.fail("no network"), ("a",))

    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        scores = torch.tensor([0.9, 0.8])
        boxes = ops.clip_boxes_to_image(torch.tensor([[0.0, 0.0, 32.0, 64.0], [0.0, 20.0, 32.0, 64.0]]), sizes[0])
        kept = ops.nms(boxes, scores, 0.5)
        return [Detections(boxes=boxes[kept], scores=scores[kept], labels=torch.zeros(2, dtype=torch.int64)[kept])]


@pytest.mark.parametrize(("padding", "tops"), [(False, [0, 40]), (True, [0])])
def test_the_padding_counts_as_image_where_the_file_suppresses(padding: bool, tops: list[int], tmp_path: Path) -> None:
    Image.new("RGB", (128, 64)).save(tmp_path / "image.png")
    found = bundle.detect_padded(Two(), tmp_path / "image.png", 64, padding=padding)
    expected = bundle.expected_objects(found, Two(), 64, 0.3)
    assert [one["box"] for one in expected["objects"]] == [[0, top, 64, 64] for top in tops]
    assert expected["tolerance"]["pixels"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "torch"}, "`bundle`: infer.py does not run `format` torch; the formats that it runs are onnx"),
        ({"format": "tflite"}, "unknown format 'tflite'"),
        ({"out": "x.onnx"}, "`out` names a file, `bundle` and `web` a folder with it; pass one of them"),
        ({"bundle": "FULL"}, "`bundle`: .*full exists and is not an empty folder; name a new one"),
        ({"bundle": "FULL/file"}, "`bundle`: .*file exists and is not an empty folder; name a new one"),
        ({"bundle": "FULL/file/below"}, "bundle: cannot write to .*below"),
        ({"model": "nowhere"}, "`images`: required because nowhere is not a run folder"),
    ],
)
def test_bad_input_is_refused_before_work(
    model: Path, changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_work(*_: object) -> Detector:
        raise AssertionError

    monkeypatch.setattr(exporter, "load_detector", no_work)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    values = {"model": model, "format": "onnx", "bundle": tmp_path / "bundle", **changes}
    values["bundle"] = str(values["bundle"]).replace("FULL", str(tmp_path / "full"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DfmsdError, match=message):
        dfmsd.export(**values)
    assert sorted(tmp_path.rglob("*")) == before
