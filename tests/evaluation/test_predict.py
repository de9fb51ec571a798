from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np
import pytest
import torch
from faster_coco_eval import COCO
from PIL import Image

from dfmsd.detectors.base import Detector
from dfmsd.errors import DfmsdError
from dfmsd.evaluation import predict as module
from dfmsd.evaluation import recording
from dfmsd.evaluation.predict import output_paths, predict
from dfmsd.exporting.verify import ExportedDetector

sv = pytest.importorskip("supervision", reason="needs pip install 'dfmsd[predict]'")

CLASSES = ("square", "disc")
FOUND = [([8.0, 4.0, 24.0, 20.0], 0.9, 1), ([0.0, 0.0, 64.0, 64.0], 0.5, 0), ([1.0, 1.0, 2.0, 2.0], 0.2, 0)]
"""Detections in every input of 64 x 64 pixels."""


@pytest.fixture(autouse=True)
def seen(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Replace the loaded detector by one with fixed detections; return its inputs."""
    inputs: list[torch.Tensor] = []

    def run(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        inputs.append(images)
        boxes, scores, labels = zip(*FOUND, strict=True)
        return torch.tensor([boxes]), torch.tensor([scores]), torch.tensor([labels])

    def load(reference: str) -> Detector:
        return ExportedDetector(run, CLASSES)

    monkeypatch.setattr(module, "load_detector", load)
    return inputs


def save(path: Path, width: int, height: int, color: tuple[int, int, int] = (200, 100, 50), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), color).save(path, **options)  # type: ignore[arg-type]
    return path


def content(out: Path) -> dict[str, list[dict[str, object]]]:
    read: dict[str, list[dict[str, object]]] = json.loads((out / "predictions.json").read_text())
    return read


def run(images: Sequence[Path], out: Path, **options: float) -> module.Speed:
    return predict("any", images, out, image_size=64, **options)  # type: ignore[arg-type]


def test_boxes_are_in_pixels_of_the_original(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", 128, 96)
    run([tmp_path / "in"], tmp_path / "out")
    found = content(tmp_path / "out")
    assert found["images"] == [{"id": 1, "file_name": "a.png", "width": 128, "height": 96}]
    assert found["categories"] == [{"id": 1, "name": "square"}, {"id": 2, "name": "disc"}]
    # 64 pixels of the frame are 128 of the image; its content is 48 high, and the second box is clipped to that
    disc = {"id": 1, "image_id": 1, "category_id": 2, "bbox": [16, 8, 32, 32], "area": 1024, "iscrowd": 0}
    square = {"id": 2, "image_id": 1, "category_id": 1, "bbox": [0, 0, 128, 96], "area": 12288, "iscrowd": 0}
    scores = [one.pop("score") for one in found["annotations"]]
    assert found["annotations"] == [disc, square]
    assert scores == pytest.approx([0.9, 0.5])


def test_exif_orientations_are_applied(tmp_path: Path, seen: list[torch.Tensor]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    save(tmp_path / "a.jpg", 128, 64, exif=exif)
    run([tmp_path / "a.jpg"], tmp_path / "out")
    assert content(tmp_path / "out")["images"][0]["height"] == 128
    assert Image.open(tmp_path / "out" / "a.jpg").size == (64, 128)
    assert (seen[0][0, 0] > 0).sum() == 32 * 64


@pytest.mark.parametrize(("score", "count"), [(0.0, 3), (0.3, 2), (0.5, 2), (0.6, 1), (1.0, 0)])
def test_low_scores_are_dropped(tmp_path: Path, score: float, count: int) -> None:
    run([save(tmp_path / "a.png", 64, 64)], tmp_path / "out", score=score)
    assert len(content(tmp_path / "out")["annotations"]) == count
    changed = np.asarray(Image.open(tmp_path / "out" / "a.png")) != (200, 100, 50)
    assert changed.any() == (count > 0)


def test_boxes_are_drawn_and_other_pixels_are_unchanged(tmp_path: Path) -> None:
    run([save(tmp_path / "a.png", 256, 256)], tmp_path / "out", score=0.8)
    drawn = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    changed = (drawn != (200, 100, 50)).any(axis=2)
    assert changed[16:80, 32].all()  # the left side of the box
    assert changed[80, 32:96].all()
    assert not changed[100:, 120:].any()
    assert not changed[30:70, 45:85].any()


def test_supervision_and_coco_read_the_file(tmp_path: Path) -> None:
    for name in ("a.png", "deep/b.jpg", "c.webp"):
        save(tmp_path / "in" / name, 64, 64)
    run([tmp_path / "in"], tmp_path / "out")
    assert {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")} == {
        "a.png",
        "deep/b.jpg",
        "c.webp.png",
        "predictions.json",
    }
    file = tmp_path / "out" / "predictions.json"
    data = sv.DetectionDataset.from_coco(str(tmp_path / "in"), str(file))
    assert data.classes == list(CLASSES)
    assert len(data) == 3
    for path, image, found in data:
        assert Path(path).is_file()
        assert image.shape == (64, 64, 3)
        assert found.xyxy.tolist() == [[8, 4, 24, 20], [0, 0, 64, 64]]
    truth = COCO(content(tmp_path / "out"))
    assert len(truth.loadRes(content(tmp_path / "out")["annotations"]).anns) == 6


def test_a_second_run_ignores_the_drawings_of_the_first(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 64, 64)
    for _ in range(2):
        assert run([tmp_path], tmp_path / "drawn").images == 1
    assert [image["file_name"] for image in content(tmp_path / "drawn")["images"]] == ["a.png"]


@pytest.mark.parametrize("ending", [".mp4", ".avi"])
def test_videos_are_drawn_frame_by_frame(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"clip{ending}"
    with sv.VideoSink(str(file), sv.VideoInfo(width=128, height=96, fps=10, total_frames=5)) as sink:
        for _ in range(5):
            sink.write_frame(np.full((96, 128, 3), (50, 100, 200), dtype=np.uint8))
    speed = run([file, save(tmp_path / "a.png", 64, 64)], tmp_path / "out", score=0.8)
    assert speed.images == 6
    found = content(tmp_path / "out")
    assert [(image["file_name"], image.get("frame")) for image in found["images"]] == [
        *((file.name, frame) for frame in range(5)),
        ("a.png", None),
    ]
    frames = list(sv.get_video_frames_generator(str(tmp_path / "out" / "clip.mp4")))
    assert [frame.shape for frame in frames] == [(96, 128, 3)] * 5
    assert np.abs(frames[2][70:, 80:].mean(axis=(0, 1)) - (50, 100, 200)).max() < 20
    assert np.abs(frames[2][20:30, 16].mean(axis=0) - (50, 100, 200)).max() > 40


def test_damaged_videos_are_named_and_the_others_done(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    with sv.VideoSink(str(clips / "whole.mp4"), sv.VideoInfo(64, 64, 10, 20), codec="mp4v") as sink:
        for _ in range(20):
            sink.write_frame(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    (clips / "text.m4v").write_text("this is no video")
    whole = (clips / "whole.mp4").read_bytes()
    start, end = whole.index(b"mdat") + 4, whole.index(b"moov") - 4
    for name, kept in [("empty.mp4", start), ("half.mp4", (start + end) // 2)]:  # their headers tell of 20 frames
        (clips / name).write_bytes(whole[:kept] + bytes(end - kept) + whole[end:])
    with pytest.raises(
        DfmsdError, match=r"2 of 4 files cannot be read: .*empty\.mp4: .*has no picture.*; nor can .*text\.m4v;"
    ):
        run([clips], tmp_path / "out")
    assert not (tmp_path / "out" / "empty.mp4").exists()
    assert {"whole.mp4", "half.mp4"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert "half.mp4: " in caplog.text
    assert "of about 20 frames could be read" in caplog.text


def test_a_video_whose_frames_cannot_be_decoded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "clip.mp4"
    with sv.VideoSink(str(file), sv.VideoInfo(width=64, height=64, fps=10, total_frames=1)) as sink:
        sink.write_frame(np.zeros((64, 64, 3), dtype=np.uint8))
    monkeypatch.setattr(sv, "get_video_frames_generator", lambda _: iter(()))
    with pytest.raises(DfmsdError, match=r"clip\.mp4: none of its frames can be decoded"):
        run([file], tmp_path / "out")
    assert not (tmp_path / "out" / "clip.mp4").exists()


@pytest.mark.parametrize("names", [("a.mp4", "b.mp4"), ("a.png", "b.png")])
def test_an_error_of_the_detector_is_not_one_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, str]
) -> None:
    files = [tmp_path / name for name in names]
    for file in files:
        if file.suffix == ".png":
            save(file, 64, 64)
            continue
        with sv.VideoSink(str(file), sv.VideoInfo(width=64, height=64, fps=10, total_frames=1)) as sink:
            sink.write_frame(np.zeros((64, 64, 3), dtype=np.uint8))

    def fail(*_: object, **__: object) -> None:
        raise DfmsdError("detector: expected three outputs")

    monkeypatch.setattr(ExportedDetector, "predict", fail)
    with pytest.raises(DfmsdError, match=r"^detector: expected three outputs$"):
        run(files, tmp_path / "out")
    assert content(tmp_path / "out")["images"] == []


def test_the_summary_states_the_median(tmp_path: Path) -> None:
    speed = run([save(tmp_path / f"{name}.png", 64, 64) for name in "abc"], tmp_path / "out")
    assert str(module.Speed(3, 12.34, 0.5)) == "3 images, 6.0 images/s in total, 12.3 ms per image to detect (median)"
    assert speed.images == 3
    assert 0 < 1e-3 * speed.median < speed.seconds


def test_files_are_not_overwritten(tmp_path: Path) -> None:
    file = save(tmp_path / "a.png", 64, 64)
    before = file.read_bytes()
    with pytest.raises(DfmsdError, match=r"drawing of .*a\.png would overwrite .*; choose another folder"):
        run([file], tmp_path)
    assert file.read_bytes() == before
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.avi").touch()
    with pytest.raises(DfmsdError, match=r"drawings of .*a\.mp4 and .*a\.avi would both be .*a\.mp4;"):
        run([tmp_path / "a.mp4", tmp_path / "a.avi"], tmp_path / "out")


def test_drawings_stay_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    save(here / "b.png", 64, 64)
    save(tmp_path / "other" / "a.png", 64, 64)
    monkeypatch.chdir(here)
    run([Path("b.png"), Path("../other/a.png")], Path("out"))
    assert sorted(path.relative_to(here).as_posix() for path in here.rglob("*.png")) == [
        "b.png",
        "out/here/b.png",
        "out/other/a.png",
    ]
    assert [image["file_name"] for image in content(here / "out")["images"]] == ["here/b.png", "other/a.png"]


def test_another_input_is_not_overwritten(tmp_path: Path) -> None:
    """The drawing of one input would land on another input, which lies in the output folder."""
    inputs = [save(tmp_path / "a.png", 64, 64), save(tmp_path / "out" / "a.png", 64, 64, (1, 2, 3))]
    before = inputs[1].read_bytes()
    with pytest.raises(DfmsdError, match=r"drawing of .*a\.png would overwrite .*out.a\.png"):
        run(inputs, tmp_path / "out")
    assert inputs[1].read_bytes() == before


def test_a_photo_that_is_no_drawing_is_not_overwritten(tmp_path: Path) -> None:
    file, photo = save(tmp_path / "a.png", 64, 64), save(tmp_path / "photos" / "a.png", 64, 64, (1, 2, 3))
    before = photo.read_bytes()
    with pytest.raises(
        DfmsdError, match=r"photos/a\.png exists, and .*photos holds no predictions\.json of an earlier call"
    ):
        run([file], tmp_path / "photos")
    assert photo.read_bytes() == before
    run([file], tmp_path / "out")
    run([file], tmp_path / "out")  # its own drawing


def test_an_interrupted_call_keeps_what_it_has_done_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [save(tmp_path / f"{name}.png", 64, 64) for name in "abc"]

    def read(file: Path) -> np.ndarray:
        if file.name == "b.png":
            raise KeyboardInterrupt
        return np.zeros((64, 64, 3), dtype=np.uint8)

    with monkeypatch.context() as patch:
        patch.setattr(recording, "read_image", read)
        with pytest.raises(KeyboardInterrupt):
            run(files, tmp_path / "out")
    assert [image["file_name"] for image in content(tmp_path / "out")["images"]] == ["a.png"]
    assert run(files, tmp_path / "out").images == 3


def test_output_paths_take_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    comparisons = 0
    equal = PurePath.__eq__

    def count(self: PurePath, other: object) -> bool:
        nonlocal comparisons
        comparisons += 1
        return equal(self, other)

    files = [Path(f"/images/{number}.png") for number in range(300)]
    monkeypatch.setattr(PurePath, "__eq__", count)
    assert output_paths(files, Path("/out"))[-1].name == "299.png"
    assert comparisons < 10 * len(files)


def test_a_score_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DfmsdError, match=r"`score` must be a number .*, got 'high'"):
        predict("any", [tmp_path], tmp_path / "out", score="high")  # type: ignore[arg-type]


def test_an_unreadable_file_among_others_is_named_and_the_others_are_done(tmp_path: Path) -> None:
    files = [save(tmp_path / f"{name}.png", 64, 64) for name in "abcd"]
    files[0].write_bytes(b"no image")
    files[2].write_bytes(files[2].read_bytes()[:60])  # its header is whole
    message = (
        r"2 of 4 files cannot be read: .*a\.png: cannot be decoded .*; nor can .*c\.png; "
        r"the others are done, see .*json"
    )
    with pytest.raises(DfmsdError, match=message):
        run(files, tmp_path / "out")
    assert [image["file_name"] for image in content(tmp_path / "out")["images"]] == ["b.png", "d.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b.png", "d.png", "predictions.json"]


def test_where_no_file_can_be_read_nothing_is_written(tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.png" for name in "abcde"]
    for file in files:
        file.write_bytes(b"no image")
    with pytest.raises(
        DfmsdError, match=r"5 of 5 files cannot be read: .*a\.png.*; nor can \S+b\.png, \S+c\.png, \.\.\.$"
    ):
        run(files, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_is_no_folder_to_write_to(tmp_path: Path) -> None:
    image = save(tmp_path / "in" / "a.png", 64, 64)
    with pytest.raises(DfmsdError, match=r"out: cannot write to .*; choose another folder"):
        run([image], image)
