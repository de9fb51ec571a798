"""`dfmsd predict --track`: an object has one id in all frames of a video."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dfmsd.detectors.prediction import NO_TRACK, Prediction
from dfmsd.errors import DfmsdError
from dfmsd.evaluation.predict import predict
from dfmsd.evaluation.tracking import Tracker
from dfmsd.exporting.verify import ExportedDetector

sv = pytest.importorskip("supervision", reason="needs pip install 'dfmsd[predict]'")
CLASSES = ("car", "bus")
Box = tuple[float, float, float, float]


def frame(boxes: Sequence[Box], labels: Sequence[int] | None = None) -> Prediction:
    labels = [0] * len(boxes) if labels is None else labels
    scores = torch.linspace(0.9, 0.4, len(boxes))
    image = torch.full((3, 200, 200), 128, dtype=torch.uint8)
    names = tuple(CLASSES[label] for label in labels)
    return Prediction(
        torch.tensor(boxes).reshape(-1, 4), scores, torch.tensor(labels, dtype=torch.int64), names, (200, 200), image
    )


def ids(tracker: Tracker, *frames: Prediction) -> list[list[int]]:
    found = [tracker.update(one).track_ids for one in frames]
    return [[] if one is None else one.tolist() for one in found]


def video(path: Path, frames: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    with sv.VideoSink(str(path), sv.VideoInfo(width=128, height=128, fps=10, total_frames=frames)) as sink:
        for _ in range(frames):
            sink.write_frame(np.full((128, 128, 3), 128, dtype=np.uint8))
    return path


@pytest.fixture
def tracker() -> Tracker:
    pytest.importorskip("trackers", reason="needs pip install 'dfmsd[track]'")
    return Tracker(0.3, 10.0)


def test_objects_keep_their_ids_though_their_order_changes(tracker: Tracker) -> None:
    frames = []
    for step in range(6):
        boxes = [(10.0 + 5 * step, 10.0, 40.0 + 5 * step, 40.0), (100.0, 150.0 - 5 * step, 130.0, 180.0 - 5 * step)]
        frames.append(frame(boxes if step % 2 == 0 else boxes[::-1]))
    first, second, *others = ids(tracker, *frames)
    assert first == [NO_TRACK, NO_TRACK]
    assert sorted(second) == [0, 1]
    assert others == [second[::-1], second, second[::-1], second]


def test_a_missed_frame_a_wavering_class_and_a_low_score_do_not_end_a_track(tracker: Tracker) -> None:
    box = (50.0, 50.0, 90.0, 90.0)
    faint = frame([(150.0, 150.0, 180.0, 180.0), box])
    found = ids(tracker, frame([box]), frame([box]), frame([]), frame([box], [1]), faint)
    assert found == [[NO_TRACK], [0], [], [0], [NO_TRACK, 0]]


def test_an_object_that_comes_after_a_long_absence_is_new(tracker: Tracker) -> None:
    box = (50.0, 50.0, 90.0, 90.0)
    found = ids(tracker, *[frame([box])] * 2, *[frame([])] * 15, *[frame([box])] * 2)
    assert (found[1], found[-1]) == ([0], [1])


def test_ids_are_drawn_and_given_to_supervision(tracker: Tracker) -> None:
    prediction = frame([(50.0, 100.0, 150.0, 150.0)])
    tracker.update(prediction)
    tracked = tracker.update(prediction)
    assert tracked.to_supervision().tracker_id.tolist() == [0]
    assert prediction.to_supervision().tracker_id is None
    assert np.asarray(tracked.plot()).tolist() != np.asarray(prediction.plot()).tolist()


def test_each_video_has_ids_of_its_own(tmp_path: Path, tracker: Tracker) -> None:
    def run(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return torch.tensor([[[8.0, 8.0, 30.0, 30.0]]]), torch.tensor([[0.9]]), torch.tensor([[1]])

    files = [video(tmp_path / "in" / f"{name}.mp4", 3) for name in "ab"]
    predict(ExportedDetector(run, CLASSES), files, tmp_path / "out", image_size=64, track=True)
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [(image["file_name"], image["frame"]) for image in content["images"]] == [
        (f"{name}.mp4", number) for name in "ab" for number in range(3)
    ]
    assert [one.get("track_id") for one in content["annotations"]] == [None, 0, 0] * 2


def test_images_are_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in "ab":
        Image.new("RGB", (64, 64)).save(tmp_path / "in" / f"{name}.png")
    video(tmp_path / "in" / "c.mp4", 1)
    message = r"`track` follows objects through a video, but \S+a\.png is an image; give videos only"
    with pytest.raises(DfmsdError, match=message):
        predict("nowhere", [tmp_path / "in"], tmp_path / "out", track=True)
    assert not (tmp_path / "out").exists()


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackers", None)
    file = video(tmp_path / "in" / "a.mp4", 1)
    with pytest.raises(DfmsdError, match=r"`track` needs trackers \(.*\): pip install 'dfmsd\[track\]'"):
        predict("nowhere", [file], tmp_path / "out", track=True)
    assert not (tmp_path / "out").exists()
