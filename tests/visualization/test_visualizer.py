from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers.fixtures import TINY_BACKBONE
from torch.nn import functional as F

from dfmsd.cli import main as cli
from dfmsd.data.images import read_image
from dfmsd.detectors import DetectorConfig, build_detector, load_detector, save_detector
from dfmsd.distillation.stages import StageConfig
from dfmsd.errors import DfmsdError
from dfmsd.evaluation import recording
from dfmsd.losses import functional
from dfmsd.losses.dfmsd import level_share
from dfmsd.visualization import CONTACT_SHEET, visualize, visualizer
from dfmsd.visualization.criteria import stage_criteria
from dfmsd.visualization.figures import draw_contact_sheet
from dfmsd.visualization.scene import build_scene
from dfmsd.visualization.visualizer import picture_names

MakeRun = Callable[..., Path]
BOXES = torch.tensor([[8.0, 8.0, 40.0, 40.0]])
IMAGE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def run(finished_run: MakeRun) -> Path:
    return finished_run("student", loss={"name": "dfmsd", "weight": 2.0, "alpha": 3.0, "project": True})


def scene(run: Path, teacher: str, boxes: torch.Tensor = BOXES):
    student, detector = load_detector(str(run)), load_detector(teacher)
    stages = stage_criteria(str(run), student, teacher, detector)
    return build_scene("image.png", student, detector, stages, IMAGE, boxes, "mine"), student, detector


def test_reconstruction_error_equals_loss_term(run, tiny_teachers):
    """Its mean over the positions is the loss term, with the layers of the run."""
    seen, student, teacher = scene(run, tiny_teachers[1])
    (stage,) = seen.stages
    assert (stage.stage, stage.trained) == (2, True)
    with torch.no_grad():
        own, theirs = student.features(IMAGE), teacher.features(IMAGE)
        terms = stage.criterion(own, theirs, boxes=[BOXES], size=(64, 64), stage=2)
    for view in seen.maps[0]:
        level = view.pair.student
        share = level_share(theirs[view.pair.teacher.name], (64, 64))
        assert view.reconstruction_error.shape == view.teacher.shape
        assert float(terms[f"mask/{level.name}"]) == pytest.approx(
            2 * 3 * share * view.reconstruction_error.mean(), rel=1e-5
        )
        cells = view.teacher.size
        correlation = float(stage.criterion.diagnostics[f"pearson/{level.name}"])
        assert view.pearson is None if cells == 1 else view.pearson == pytest.approx(correlation)


def test_layers_come_from_the_checkpoint(run, tiny_teachers):
    state = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    for index, name in enumerate(tiny_teachers):
        (stage,) = stage_criteria(str(run), load_detector(run), name, load_detector(name))
        for key, value in stage.criterion.state_dict().items():
            assert torch.equal(value, state[f"task.trainable.criteria.{index}.{key}"])


def test_attention_and_masks_equal_those_of_the_loss(run, tiny_teachers):
    seen, _, teacher = scene(run, tiny_teachers[0])
    with torch.no_grad():
        feature = teacher.features(IMAGE)["p3"]
    attention = functional.spatial_attention(functional.per_magnitude(feature))
    view = seen.maps[0][0]
    np.testing.assert_allclose(view.teacher, attention[0, 0])
    np.testing.assert_array_equal(view.mask, functional.select_mask(attention, 0.5)[0, 0])
    np.testing.assert_array_equal(view.mask, view.enhanced_mask)  # stage 1 is not enhanced
    channels = functional.channel_attention(feature)
    np.testing.assert_allclose(view.channels, channels.flatten())
    np.testing.assert_array_equal(view.masked_channels, (functional.select_mask(channels, 0.3) == 0).flatten())


def test_enhancement_masks_more_and_prefers_objects(run, tiny_teachers):
    seen, _, _ = scene(run, tiny_teachers[1])
    without, _, _ = scene(run, tiny_teachers[1], torch.empty(0, 4))
    view, bare = seen.maps[0][0], without.maps[0][0]
    assert (view.enhanced_mask == 0).mean() > (view.mask == 0).mean()
    stride = view.pair.teacher.stride
    inside = np.s_[8 // stride : 40 // stride, 8 // stride : 40 // stride]
    assert (view.enhanced_mask[inside] == 0).sum() > (bare.enhanced_mask[inside] == 0).sum()
    np.testing.assert_array_equal(view.mask, bare.mask)


def test_random_mask_belongs_to_the_error(finished_run, tiny_teachers):
    """The displayed mask is the one used for the error, although masks are random."""
    run = finished_run("random", loss={"name": "dfmsd", "direction": "random", "channel": False})
    seen, student, teacher = scene(run, tiny_teachers[0])
    (stage,) = seen.stages
    view, method, align = seen.maps[0][0], stage.criterion.methods[0], stage.criterion.align[0]
    with torch.no_grad():
        own, theirs = align(student.features(IMAGE)["p3"], teacher.features(IMAGE)["p3"])
        rebuilt = method.generation["spatial"](own * torch.from_numpy(view.enhanced_mask))
        error = F.mse_loss(rebuilt, functional.standardize(theirs), reduction="none").mean(dim=1)[0]
    np.testing.assert_allclose(view.reconstruction_error, error, rtol=1e-4, atol=1e-6)


def test_scene_does_not_advance_the_global_generator(run, tiny_teachers):
    seen, student, teacher = scene(run, tiny_teachers[1])
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    build_scene("image.png", student, teacher, seen.stages, IMAGE, BOXES, "mine")
    assert torch.equal(torch.rand(1), expected)


def test_missing_layers_are_explained(finished_run, tiny_teachers, tmp_path):
    run = finished_run("bare")
    (run / "last.ckpt").unlink()
    seen, _, _ = scene(run, tiny_teachers[0])
    assert not seen.stages[0].trained
    assert any("last.ckpt, which contains" in line for line in seen.describe())
    for view in seen.maps[0]:
        assert (
            view.reconstruction_error is view.distance is view.mask is view.pearson is None
        )  # 16 channels do not match 32
        assert view.teacher.shape == view.student.shape
    alone = save_detector(load_detector(run), tmp_path / "alone.safetensors")
    seen, _, _ = scene(alone, tiny_teachers[1])
    assert any("not a run folder" in line for line in seen.describe())
    assert all(view.mask is not None and view.reconstruction_error is None for view in seen.maps[0])  # 16 channels each


def test_detector_that_is_not_a_teacher_is_shown(run, tmp_path):
    config = DetectorConfig("retinanet", TINY_BACKBONE, fpn_channels=16, head_convs=1)
    save_detector(build_detector(config, ("square", "disc")), tmp_path / "other")
    seen, _, _ = scene(run, str(tmp_path / "other"))
    assert any("is not a teacher of" in line for line in seen.describe())
    assert seen.maps[0][0].teacher.mean() == pytest.approx(1, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["pkd", "mgd", "crosskd", [{"name": "pkd"}, {"name": "dmkd"}]])
def test_every_kind_of_loss_has_a_picture(finished_run, tiny_teachers, loss):
    name = loss if isinstance(loss, str) else "sum"
    stages = [StageConfig(epochs=1, teacher=tiny_teachers[0])]
    student = DetectorConfig("fcos", TINY_BACKBONE, fpn_channels=32, head_convs=1)  # crosskd needs equal heads
    run = finished_run(name, student=student, stages=stages, loss={"name": loss} if isinstance(loss, str) else loss)
    seen, _, _ = scene(run, tiny_teachers[0])
    views = seen.maps[0]
    assert all((view.mask is not None) == (name == "sum") for view in views)
    assert all((view.reconstruction_error is not None) == (name == "sum") for view in views)
    if name != "sum":
        assert any("does not reconstruct" in line or "no reconstruction" in line for line in seen.describe())
    draw_contact_sheet([seen])


def test_one_picture_per_image_and_a_contact_sheet(run, tiny_root, tiny_teachers, tmp_path, capsys):
    image = tiny_root / "val" / "val_0.jpg"
    (tmp_path / "more").mkdir()
    Image.open(image).save(tmp_path / "more" / "val_0.png")
    (tmp_path / "more" / "notes.txt").write_text("no image")
    models = ["--model", str(run), "--teacher", tiny_teachers[1]]
    cli.run(["visualize", *models, "--out", str(tmp_path / "out"), str(image), str(tmp_path / "more")])
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.name for path in written] == ["val_0.png", "val_0-2.png", CONTACT_SHEET]
    sizes = [Image.open(path).size for path in written]
    assert sizes[0] == sizes[1]
    assert min(min(size) for size in sizes) > 400
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in written)


def test_an_image_that_cannot_be_read_does_not_end_the_call(run, tiny_root, tiny_teachers, tmp_path):
    (tmp_path / "broken.png").write_text("no image")
    images = [tmp_path / "broken.png", *sorted((tiny_root / "val").iterdir())[:1]]
    with pytest.raises(DfmsdError, match=r"1 of 2 files cannot be read: .*broken\.png.*; the others are done"):
        visualize(str(run), tiny_teachers[0], images, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [CONTACT_SHEET, f"{images[1].stem}.png"]


def test_a_picture_of_something_else_is_not_replaced(run, tiny_root, tiny_teachers, tmp_path):
    image = sorted((tiny_root / "val").iterdir())[0]
    (tmp_path / f"{image.stem}.png").write_text("mine")
    with pytest.raises(DfmsdError, match=r"\.png exists, and .* holds no contact_sheet\.png of an earlier call"):
        visualize(str(run), tiny_teachers[0], [image], tmp_path)
    assert (tmp_path / f"{image.stem}.png").read_text() == "mine"


def test_an_interrupted_call_can_be_repeated(run, tiny_root, tiny_teachers, tmp_path, monkeypatch):
    images = sorted((tiny_root / "val").iterdir())[:2]

    def read(file):
        if file == images[1]:
            raise KeyboardInterrupt
        return read_image(file)

    with monkeypatch.context() as patch:
        patch.setattr(recording, "read_image", read)
        with pytest.raises(KeyboardInterrupt):
            visualize(str(run), tiny_teachers[0], images, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONTACT_SHEET, f"{images[0].stem}.png"]
    assert len(visualize(str(run), tiny_teachers[0], images, tmp_path)) == 3


def test_invalid_input_raises_one_line_errors(run, tiny_teachers, tiny_root, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_text("no image")
    image = tiny_root / "val" / "val_0.jpg"
    (tmp_path / "file").write_text("")
    cases = [
        ([tmp_path / "gone.png"], tmp_path / "out", "no such file or folder"),
        ([tmp_path / "empty"], tmp_path / "out", "no image in this folder"),
        ([], tmp_path / "out", "no images"),
        ([tmp_path / "broken.png"], tmp_path / "out", "cannot be decoded"),
        ([image], tmp_path / "file", "choose another folder"),
    ]
    for images, out, message in cases:
        with pytest.raises(DfmsdError, match=message) as caught:
            visualize(str(run), tiny_teachers[0], images, out)
        assert "\n" not in str(caught.value)
    (run.parent / "damaged").mkdir()
    for file in run.iterdir():
        (run.parent / "damaged" / file.name).write_bytes(file.read_bytes())
    (run.parent / "damaged" / "last.ckpt").write_text("no checkpoint")
    with pytest.raises(DfmsdError, match=r"last\.ckpt cannot be read"):
        visualize(str(run.parent / "damaged"), tiny_teachers[0], [image], tmp_path / "out")


def test_layers_of_another_loss_are_not_loaded(run, tiny_teachers):
    text = (run / "config.yaml").read_text()
    copy = run.parent / "changed"
    copy.mkdir()
    for file in run.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "config.yaml").write_text(text.replace("generation: full", "generation: light"))
    seen, _, _ = scene(copy, tiny_teachers[0])
    assert any("do not fit" in line for line in seen.describe())


def test_picture_names_are_unique():
    files = [Path(name) for name in ("a.jpg", "b.jpg", "x/a.png", "a-2.jpg", "y/a.jpg", "contact_sheet.jpg")]
    assert picture_names(files) == ["a.png", "b.png", "a-2.png", "a-2-2.png", "a-3.png", "contact_sheet-2.png"]


def test_naming_pictures_takes_linear_time(monkeypatch):
    calls = 0

    def numbered(stem: str, number: int) -> str:
        nonlocal calls
        calls += 1
        return f"{stem}-{number}.png"

    monkeypatch.setattr(visualizer, "_numbered", numbered)
    files = [Path(f"{index % 2}.jpg") for index in range(5000)]
    assert len(set(picture_names(files))) == len(files)
    assert calls == len(files)
