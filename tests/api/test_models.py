from __future__ import annotations

import json
from pathlib import Path

import pytest

import dfmsd
from dfmsd.cli.main import run
from dfmsd.errors import DfmsdError


def test_evaluate_takes_a_detector_or_a_reference(
    tiny_root: Path, tiny_teachers: tuple[str, str], tmp_path: Path
) -> None:
    detector = dfmsd.load_detector(tiny_teachers[0])
    data = dfmsd.DataConfig(str(tiny_root), image_size=64)
    metrics = dfmsd.evaluate(tiny_teachers[0], tiny_root, image_size=64, limit=2, out=tmp_path / "metrics.json")
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert dfmsd.evaluate(detector, data, limit=2) == metrics
    assert dfmsd.evaluate(detector, dfmsd.CocoDataModule(data).val, limit=2) == metrics


def test_classes_that_a_detector_lacks_are_named(
    tiny_root: Path, tiny_teachers: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", logger="dfmsd")
    detector = dfmsd.load_detector(tiny_teachers[0])
    detector.image_size = 64
    whole = dfmsd.evaluate(detector, tiny_root)["per_class"]
    assert not caplog.records
    detector.class_names = ("square", "other")
    part = dfmsd.evaluate(detector, tiny_root)["per_class"]
    (message,) = caplog.messages
    assert message.endswith("the detector lacks 1 of 2 classes, whose objects count as missed: [disc]")
    assert part == {**whole, "disc": 0.0}


def test_evaluate_opens_only_the_split_that_it_needs(
    tiny_coco: Path, tiny_teachers: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        (tiny_coco / "annotations" / f"instances_{split}.json").rename(tiny_coco / "annotations" / f"{split}.kept")
    (tiny_coco / "annotations" / "val.kept").rename(tiny_coco / "annotations" / "instances_test.json")
    (tiny_coco / "val").rename(tiny_coco / "test")
    metrics = dfmsd.evaluate(tiny_teachers[0], tiny_coco, split="test", image_size=64)
    run(["evaluate", "--model", tiny_teachers[0], "--data", str(tiny_coco), "--split", "test", "--image-size", "64"])
    assert json.loads(capsys.readouterr().out) == metrics
    with pytest.raises(DfmsdError, match=r"has no split val, only test; name another with data\.val"):
        dfmsd.evaluate(tiny_teachers[0], tiny_coco, image_size=64)


def test_evaluate_uses_the_size_of_the_training_unless_another_is_named(
    tiny_root: Path, tiny_teachers: tuple[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", logger="dfmsd")
    detector, sizes = dfmsd.load_detector(tiny_teachers[0]), []
    detector.image_size = 64
    monkeypatch.setattr(
        "dfmsd.evaluation.evaluate.evaluate", lambda _, loader, **__: sizes.append(loader.dataset.image_size)
    )
    data = dfmsd.DataConfig(str(tiny_root))
    dfmsd.evaluate(detector, tiny_root)
    dfmsd.evaluate(detector, tiny_root, image_size=96)
    dfmsd.evaluate(detector, data, image_size=96)
    assert not caplog.records
    dfmsd.evaluate(detector, data)
    assert sizes == [64, 96, 96, 256]
    assert caplog.messages == ["evaluating at 256 pixels a model trained at 64"]
    with pytest.raises(DfmsdError, match=r"image_size must be a multiple of 32, at least 32 .* got 0"):
        dfmsd.evaluate(detector, tiny_root, image_size=0)
    with pytest.raises(DfmsdError, match="image_size: a data set or a loader has its own; leave it out"):
        dfmsd.evaluate(detector, dfmsd.CocoDataModule(data).val, image_size=96)


def test_evaluate_refuses_another_type() -> None:
    with pytest.raises(DfmsdError, match="model: expected a Detector or a reference such as a run folder, got int"):
        dfmsd.evaluate(3, "data")  # type: ignore[arg-type]


def test_evaluate_refuses_a_place_where_it_cannot_write_before_it_starts(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DfmsdError, match="is a folder; name a file in it"):
        dfmsd.evaluate("runs/none", "data", out=tmp_path)
    with pytest.raises(DfmsdError, match=r"out: cannot write to .*; choose another folder"):
        dfmsd.evaluate("runs/none", "data", out=tmp_path / "file" / "metrics.json")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that nobody can write to")
def test_a_folder_that_cannot_be_written_to_is_refused_before_the_model_is_loaded(tiny_root: Path) -> None:
    pytest.importorskip("supervision")
    images, closed = tiny_root / "val", Path("/proc/self")
    calls = {
        "evaluate": lambda: dfmsd.evaluate("runs/none", "data", out=closed / "metrics.json"),
        "predict": lambda: dfmsd.predict("runs/none", images, closed),
        "export": lambda: dfmsd.export("runs/none", "torch", out=closed / "model.pt2", images=images),
        "visualize": lambda: dfmsd.visualize("runs/none", "runs/none", images, closed),
    }
    for call in calls.values():
        with pytest.raises(DfmsdError, match=r"out: cannot write to /proc/self .*; choose another folder"):
            call()


def test_predict_takes_a_detector(tiny_root: Path, tiny_teachers: tuple[str, str], tmp_path: Path) -> None:
    pytest.importorskip("supervision")
    detector = dfmsd.load_detector(tiny_teachers[0])
    speed = dfmsd.predict(detector, tiny_root / "val" / "val_0.jpg", tmp_path / "out", image_size=64)
    assert speed.images == 1
    assert (tmp_path / "out" / "predictions.json").is_file()
