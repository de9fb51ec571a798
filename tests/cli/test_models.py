"""``dfmsd predict`` and ``dfmsd export``: output and refusals."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from tests.helpers.command import Command
from tests.helpers.exports import eagerly
from tests.helpers.layouts import Picture, yolo

from dfmsd.exporting import choice, exporter


@pytest.fixture
def model(tiny_teachers: tuple[str, str]) -> str:
    return tiny_teachers[0]


def test_predict_writes_files_and_prints_its_speed(dfmsd: Command, model: str, tiny_root: Path) -> None:
    pytest.importorskip("supervision")
    status, out, _ = dfmsd(
        "predict", "--model", model, "--score", 0.05, "--image-size", 64, "--out", "seen", tiny_root / "val"
    )
    assert status == 0
    speed, file = out.splitlines()
    assert re.fullmatch(r"4 images, \d+\.\d images/s in total, \d+\.\d ms per image to detect \(median\)", speed)
    content = json.loads((dfmsd.folder / file).read_text())
    assert [image["file_name"] for image in content["images"]] == [f"val_{number}.jpg" for number in range(4)]
    assert [category["name"] for category in content["categories"]] == ["square", "disc"]
    assert (dfmsd.folder / "seen" / "val_3.jpg").is_file()


def test_predict_cuts_images_into_tiles(dfmsd: Command, model: str, tiny_root: Path) -> None:
    arguments = ("--model", model, "--image-size", 64, "--score", 0.0, tiny_root / "val")
    for name, tiles in (("whole", ()), ("tiled", ("--tiles", 32, "--overlap", 0.5)), ("same", ("--tiles", 4096))):
        assert dfmsd("predict", "--as-annotations", f"{name}.json", *tiles, *arguments)[0] == 0
    whole, tiled, same = ((dfmsd.folder / f"{name}.json").read_text() for name in ("whole", "tiled", "same"))
    assert whole == same
    assert len(json.loads(tiled)["images"]) == 4
    assert tiled != whole


def test_predict_writes_annotations_without_supervision(
    dfmsd: Command, model: str, tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    status, out, _ = dfmsd("predict", "--model", model, "--as-annotations", "new/labels.json", tiny_root / "val")
    assert status == 0
    assert out.splitlines()[1] == "new/labels.json"
    assert len(json.loads((dfmsd.folder / "new" / "labels.json").read_text())["images"]) == 4
    error = dfmsd.refusal("predict", "--model", model, "--as-annotations", "new/labels.json", tiny_root / "val")
    assert "--as-annotations: new/labels.json exists; name a new file, or remove it" in error
    error = dfmsd.refusal("predict", "--model", model, "--track", "--as-annotations", "x.json", tiny_root / "val")
    assert "--track follows objects through a video, but --as-annotations is for images; use --out" in error
    error = dfmsd.refusal("predict", "--model", model, tiny_root / "val")
    assert "pass either --out, a folder for drawings, or --as-annotations, a COCO file to create" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jpg"], "nowhere.jpg: no such file or folder; give images or folders of images"),
        (["empty"], "empty: no image in this folder"),
        (["broken.jpg"], "broken.jpg: cannot be decoded as an image"),
        (["broken.mp4"], "broken.mp4: cannot be decoded as a video"),
        (["--score", "1.5", "good"], "--score must be a number in 0..1, got 1.5"),
        (["--tiles", "16", "good"], "--tiles must be a side in whole pixels, at least 32, got 16"),
        (["--tiles", "large", "good"], "error: tiles: expected int, got large; see dfmsd predict --help"),
        (["--tiles", "64", "--overlap", "20%", "good"], "error: overlap: expected float, got 20%; see"),
        (["--image-size", "large", "good"], "error: image_size: expected int, got large; see"),
        (
            ["--tiles", "64", "--overlap", "1", "good"],
            "--overlap must be a share of the tile from 0 to below 1, got 1.0",
        ),
        (["--track", "good"], "--track follows objects through a video, but good/a.jpg is an image; give videos only"),
        (["--overlap", "0.2", "good"], "--overlap needs --tiles, the side of the tiles in pixels"),
        (
            ["--image-size", "640", "480", "good"],
            "--image-size: one size, the longer side in pixels, is meant, got 640 480",
        ),
        (
            ["--image-size=640", "480", "good"],
            "--image-size: one size, the longer side in pixels, is meant, got 640 480",
        ),
        (["--image-size", "640x480", "good"], "is meant, got 640x480"),
        (["--image-size", "0", "good"], "--image-size must be a multiple of 32, at least 32"),
        (["--model", "nowhere", "good"], "no detector at 'nowhere'"),
        (["--out", "good", "good"], "would overwrite"),
        ([], "images"),
    ],
)
def test_predict_refuses_bad_input(
    dfmsd: Command, model: str, tiny_root: Path, arguments: list[str], message: str
) -> None:
    pytest.importorskip("supervision")
    (dfmsd.folder / "empty").mkdir()
    (dfmsd.folder / "good").mkdir()
    (dfmsd.folder / "good" / "a.jpg").write_bytes((tiny_root / "val" / "val_0.jpg").read_bytes())
    for name in ("broken.jpg", "broken.mp4"):
        (dfmsd.folder / name).write_bytes(b"nothing of the kind")
    assert message in dfmsd.refusal("predict", "--model", model, "--out", "out", *arguments)


def test_a_missing_extra_is_named(dfmsd: Command, model: str, tiny_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    error = dfmsd.refusal("predict", "--model", model, "--out", "out", tiny_root / "val")
    assert re.search(r"predict needs supervision \(.*\): pip install 'dfmsd\[predict\]'", error)
    for name, package in (
        ("onnx", "onnxscript"),
        ("openvino", "openvino"),
        ("ncnn", "pnnx"),
        ("litert", "litert_torch"),
        ("coreml", "coremltools"),
        ("executorch", "executorch"),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        error = dfmsd.refusal("export", "--model", model, "--format", name)
        assert re.search(rf"--format {name} needs .*{package}: pip install 'dfmsd\[{name}\]'", error)


def test_export_writes_the_file_and_prints_the_differences(
    dfmsd: Command, model: str, tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "LATENCY_SECONDS", 0.0)
    monkeypatch.setitem(choice.FORMATS, "torch", eagerly(0.0))
    arguments = ("--format", "torch", "--image-size", 64, "--out", "student.pt2")
    status, out, _ = dfmsd("export", "--model", model, *arguments, "--images", tiny_root)
    assert status == 0
    file, difference, latency = out.splitlines()
    assert file == "student.pt2"
    assert re.fullmatch(
        r"4 images, \d+ detections: largest difference .* of the side in boxes \(.* pixels\), .*", difference
    )
    assert re.fullmatch(r"one image, median: PyTorch \d+\.\d ms, torch \d+\.\d ms", latency)
    assert sorted(path.name for path in dfmsd.folder.glob("student*")) == ["student.pt2", "student.pt2.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "coreml"], "--format"),
        (["--format", "torch", "--out", "x.onnx"], "--out: expected a file ending in .pt2, got x.onnx"),
        (["--format", "torch", "--int8"], "--int8 requires --format onnx"),
        (["--format", "torch"], "is not a run folder or a file in one; pass a folder of images"),
        (["--format", "torch", "--images", "nowhere"], "nowhere: no such file or folder"),
        (
            ["--format", "torch", "--out", "x.pt2", "--image-size", "50", "--images", "IMAGES"],
            "--image-size must be a multiple of 32",
        ),
        (
            ["--format", "torch", "--model", "nowhere", "--out", "x.pt2", "--images", "IMAGES"],
            "no detector at 'nowhere'",
        ),
    ],
)
def test_export_refuses_bad_input(
    dfmsd: Command, model: str, tiny_root: Path, arguments: list[str], message: str
) -> None:
    given = [str(tiny_root / "val") if argument == "IMAGES" else argument for argument in arguments]
    assert message in dfmsd.refusal("export", "--model", model, *given)


def test_data_prints_names_with_brackets(dfmsd: Command) -> None:
    box = (4.0, 4.0, 20.0, 20.0)
    picture = Picture(64, 48, [("[bold]car", box), ("bus[/x]", box), (":car: seat", box)])
    yolo(dfmsd.folder / "data [v1]", {"train": {"a": picture}})
    status, out, _ = dfmsd("data", "data [v1]")
    assert status == 0
    assert out.startswith("YOLO layout in data [v1]")
    assert all(f" {name} " in out for name, _ in picture.boxes)


def test_students_prints_a_table(dfmsd: Command) -> None:
    status, out, _ = dfmsd("students", "ssdlite/mobilenetv3_small_050", "--image-size", 64, "--classes", 3)
    assert status == 0
    assert "ssdlite/mobilenetv3_small_050" in out
    status, _, error = dfmsd("students", "ssdlite", "--image-size", 64)
    assert status == 2
    assert "expected arch/backbone" in error
