"""Folders, the hub and saved students of Hugging Face transformers, intact and damaged."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.helpers.tiny_transformers import (
    BACKBONE,
    CLASSES,
    NEEDED,
    PYRAMID,
    SIZES,
    TARGETS,
    Built,
    Saved,
    save_model,
    student,
)
from torch import Tensor, nn

from dfmsd.detectors import DetectorConfig, build_detector, load_detector, save_detector
from dfmsd.detectors.huggingface.detector import TransformersDetector
from dfmsd.errors import DfmsdError

pytestmark = NEEDED
DINOV3 = {
    "model_type": "dinov3_vit",
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "patch_size": 16,
    "out_indices": [1, 2, 3],
}


@pytest.mark.parametrize(
    ("model_type", "pretrained"),
    [
        ("rt_detr", True),
        ("rt_detr_v2", False),
        ("d_fine", False),
        ("deimv2", True),
        ("lw_detr", True),
        ("rf_detr", True),
        ("rf_detr", False),
    ],
)
def test_a_saved_student_comes_back_without_the_folder(
    saved: Saved, tmp_path: Path, model_type: str, pretrained: bool
) -> None:
    folder = Path(shutil.copytree(saved(model_type), tmp_path / "model"))
    detector = student(folder, pretrained, ("a", "b", "c"))
    for name, parameter in detector.named_parameters():  # scores above the threshold
        if name.endswith("class_embed.bias"):
            nn.init.zeros_(parameter)
    detector(torch.rand(2, 3, 64, 64), TARGETS)  # moves the statistics of the batch normalization
    detector.eval()
    save_detector(detector, tmp_path / "run")
    shutil.rmtree(folder)
    loaded = load_detector(tmp_path / "run")
    assert isinstance(loaded, TransformersDetector)
    assert not loaded.training
    assert (loaded.levels, loaded.class_names) == (detector.levels, detector.class_names)
    assert loaded.config == detector.config
    state = loaded.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in detector.model.state_dict().items())
    images = torch.rand(2, 3, 96, 96)
    for own, theirs in zip(loaded.detect(images, SIZES), detector.detect(images, SIZES), strict=True):
        assert len(own["scores"]) > 0
        assert all(torch.equal(own[key], theirs[key]) for key in ("boxes", "scores", "labels"))  # type: ignore[literal-required]


def _give_up(seen: list[Tensor], pixel_values: Tensor, *_: Any) -> None:
    seen.append(pixel_values)
    raise NotImplementedError


def test_a_saved_student_keeps_its_normalization(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings.update(do_normalize=True, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.5, 0.25], rescale_factor=1 / 127.5)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    save_detector(student(folder), tmp_path / "run")
    for detector in (load_detector(tmp_path / "run"), load_detector(f"hf:{folder}")):
        images = torch.ones(1, 3, 32, 32)
        with monkeypatch.context() as patch:
            seen: list[Tensor] = []
            patch.setattr(detector.model.model.backbone, "forward", partial(_give_up, seen))
            with pytest.raises(NotImplementedError):
                detector.features(images)
        # 255 / 127.5 = 2, less the mean, over the deviation
        assert seen[0][0, :, 0, 0].tolist() == pytest.approx([1.9 / 0.5, 1.8 / 0.5, 1.7 / 0.25])


def test_only_the_class_layers_are_reset_for_other_classes(saved: Saved, caplog: pytest.LogCaptureFixture) -> None:
    """The checkpoint has three labels: three other ones reset layers too."""
    theirs = load_detector(f"hf:{saved('rt_detr')}").model.state_dict()
    with caplog.at_level(logging.INFO, "dfmsd"):
        detector = student(saved("rt_detr"), classes=("x", "y", "z"))
    own = detector.model.state_dict()
    changed = {key for key, value in own.items() if not torch.equal(value, theirs[key])}
    # biases start with the same value each time
    layers = ("denoising_class_embed", "enc_score_head", "decoder.class_embed.0", "decoder.class_embed.1")
    assert changed == {f"model.{layer}.weight" for layer in layers}
    assert "classes differ (2 -> 3), so in model.denoising_class_embed, model.enc_score_head" in caplog.text
    assert ": new x, y, z" in caplog.text


def test_classes_of_the_same_name_keep_their_rows(saved: Saved, caplog: pytest.LogCaptureFixture) -> None:
    """The checkpoint has a label without a class, the first one, and a row for the padding of noisy queries."""
    theirs = load_detector(f"hf:{saved('rt_detr')}").model.state_dict()
    with caplog.at_level(logging.INFO, "dfmsd"):
        own = student(saved("rt_detr"), classes=("disc", "Square")).model.state_dict()
    for name in ("enc_score_head", "decoder.class_embed.1"):
        assert torch.equal(own[f"model.{name}.weight"], theirs[f"model.{name}.weight"][[2, 1]])
    embedding = "model.denoising_class_embed.weight"
    assert torch.equal(own[embedding], theirs[embedding][[2, 1, 3]])
    assert "kept all " in caplog.text


def test_a_config_alone_is_enough_for_random_weights(folder: Path) -> None:
    for name in ("model.safetensors", "preprocessor_config.json"):
        (folder / name).unlink()
    detector = student(folder, pretrained=False)
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in detector.model.model.backbone.modules())
    assert detector.mean.tolist() == [[[0.0]]] * 3  # RT-DETR's processor does not normalise
    again = student(folder, pretrained=False)
    assert all(torch.equal(p, q) for p, q in zip(detector.parameters(), again.parameters(), strict=True))
    untrained = load_detector(f"hf:{folder}", trained=False)
    assert untrained.levels == PYRAMID


def test_pretrained_batch_normalization_stays_frozen(learning: Built) -> None:
    detector = learning("rt_detr")
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in detector.model.model.backbone.modules())
    before = {name: value.clone() for name, value in detector.model.model.backbone.named_buffers()}
    detector(torch.rand(2, 3, 64, 64), TARGETS)
    assert before
    assert all(torch.equal(v, before[n]) for n, v in detector.model.model.backbone.named_buffers())


def test_weights_saved_in_half_precision_are_read_as_float32(folder: Path) -> None:
    state = {key: value.half() if value.is_floating_point() else value for key, value in _state(folder).items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "dtype": "float16"}))
    for detector in (load_detector(f"hf:{folder}"), student(folder, pretrained=False)):
        assert {p.dtype for p in detector.parameters()} == {torch.float32}


def test_a_config_made_for_one_size_takes_others(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    settings.update(anchor_image_size=[64, 64], eval_size=64)
    (folder / "config.json").write_text(json.dumps(settings))
    detector = load_detector(f"hf:{folder}")
    assert len(detector.detect(torch.rand(1, 3, 96, 128), [(96, 128)])) == 1


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"size": {"height": 512, "width": 640}}, 640),
        ({"size": {"shortest_edge": 480, "longest_edge": 1333}}, 640),
        ({"size": {"shortest_edge": 480, "longest_edge": 500}}, 512),
        ({"size": 480}, 640),  # of older versions
        ({"do_resize": False}, None),
    ],
)
def test_the_processor_states_the_image_size(folder: Path, settings: dict[str, Any], size: int | None) -> None:
    _edit(folder / "preprocessor_config.json", **settings)
    assert load_detector(f"hf:{folder}", trained=False).image_size == size
    assert student(folder).image_size is None  # it will be trained at that of a run


def _state(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def _edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _without(folder: Path, part: str) -> None:
    state = {key: value for key, value in _state(folder).items() if part not in key}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _pickle(folder: Path) -> None:
    torch.save(_state(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), r"the folder must contain config\.json"),
        (lambda f: (f / "config.json").write_text("{"), r"the folder must contain config\.json"),
        (
            lambda f: _edit(f / "config.json", model_type="owlvit"),
            r"is a owlvit: .*rt_detr, rt_detr_v2, d_fine, deimv2",
        ),
        (lambda f: _edit(f / "config.json", model_type="zebra"), r"zebra"),
        (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors"),
        (_pickle, r"model\.safetensors"),
        (lambda f: (f / "model.safetensors").write_text("hello"), r"the folder must contain config\.json, model\.safe"),
        (lambda f: _without(f, "lateral_convs.0"), r"do not fit its config\.json: \d+ missing .*lateral_convs\.0"),
        (lambda f: _edit(f / "config.json", d_model=32), r"do not fit its config\.json"),
        (lambda f: (f / "preprocessor_config.json").unlink(), r"has no preprocessor_config\.json"),
        (lambda f: _edit(f / "preprocessor_config.json", size="large"), r"size in its preprocessor_config\.json is"),
        (lambda f: _edit(f / "preprocessor_config.json", size={"height": [1]}), r"size in its preprocessor_config"),
    ],
)
def test_damaged_folders_are_refused_in_one_line(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    with pytest.raises(DfmsdError, match=message) as error:
        load_detector(f"hf:{folder}")
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_incomplete_weights_are_refused(folder: Path) -> None:
    _without(folder, "lateral_convs.0")
    with pytest.raises(DfmsdError, match="do not fit"):
        student(folder)


def test_an_unavailable_hub_is_reported_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DfmsdError) as error:
        load_detector("hf:nobody/nothing")
    assert str(error.value).startswith(
        "hf:nobody/nothing: there is no folder nobody/nothing, and it cannot be loaded from the Hugging Face hub"
    )
    assert "hf download nobody/nothing" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("reference", ["hf:runs/hf/none", "hf:", "hf:./none"])
def test_invalid_hub_ids_are_not_looked_up(reference: str) -> None:
    with pytest.raises(DfmsdError, match=r"there is no folder .*, and an id on the hub has the form owner/model"):
        load_detector(reference)


def test_a_missing_library_names_the_extra(learning: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_detector(learning("rt_detr"), tmp_path / "run")
    monkeypatch.setitem(sys.modules, "transformers", None)
    for load in (lambda: load_detector("hf:a/b"), lambda: load_detector(tmp_path / "run")):
        with pytest.raises(DfmsdError, match=r"pip install 'dfmsd\[transformers\]'"):
            load()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pretrained": "weights.pth"}, r"pretrained: 'weights\.pth' is a file; hf:\S+ takes true"),
    ],
)
def test_a_file_of_pretrained_weights_is_refused(saved: Saved, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DfmsdError, match=message):
        build_detector(DetectorConfig(f"hf:{saved('rt_detr')}", **options), CLASSES)


def test_a_family_whose_normalization_never_learns_needs_trained_weights(saved: Saved) -> None:
    folder = saved("deformable_detr")
    with pytest.raises(DfmsdError, match=r"no normalization that learns, .*; set pretrained: true for those in hf:"):
        student(folder, pretrained=False)
    learner = student(folder)
    (backbone,) = learner.backbone_layers()
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert learner.model.config.auxiliary_loss


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformers": {"config": {}}}, "does not describe a detector"),
        (
            {"transformers": {"config": {"model_type": "zebra"}, "pixels": {}}},
            "transformers cannot use the description",
        ),
        ({"transformers": {"config": {"model_type": "vit"}, "pixels": {}}}, "is a vit"),
        ({"class_names": ["only"]}, "does not fit the model: size mismatch"),
        ({"levels": []}, r"lists levels \[\]"),
    ],
)
def test_damaged_descriptions_are_refused(
    learning: Built, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    save_detector(learning("rt_detr"), tmp_path)
    _edit(tmp_path / "student.json", **changes)
    with pytest.raises(DfmsdError, match=message) as error:
        load_detector(tmp_path)
    assert "\n" not in str(error.value)


def test_every_group_of_queries_keeps_the_rows_of_its_classes(saved: Saved, tmp_path: Path) -> None:
    theirs = load_detector(f"hf:{saved('rf_detr')}").model.state_dict()
    own = student(saved("rf_detr"), classes=("disc", "square")).model.state_dict()
    layers = [name for name in own if "class_embed" in name]
    assert len(layers) == 2 * (1 + 3)  # weights and biases of the decoder's layer, and of one layer per group
    assert all(torch.equal(own[name], theirs[name][[2, 1]]) for name in layers)


LITE = {
    "encoder_type": "lite",
    "backbone_config": {**BACKBONE, "out_indices": [3]},
    "encoder_in_channels": [32],
    "decoder_in_channels": [64, 64],
    "feat_strides": [16, 32],
    "num_feature_levels": 2,
}
"""One map of the backbone, two of the encoder."""


@pytest.mark.parametrize(
    ("changes", "backbone", "strides"),
    [
        ({"backbone_config": DINOV3}, "DINOv3ViTBackbone", [8, 16, 32]),
        (LITE, "RTDetrResNetBackbone", [16, 32]),
    ],
    ids=["dinov3", "lite"],
)
def test_variants_of_deimv2_come_back_and_learn(
    tmp_path: Path, changes: dict[str, Any], backbone: str, strides: list[int]
) -> None:
    save_model("deimv2", tmp_path / "model", **changes)
    detector = student(tmp_path / "model")
    assert [type(layer).__name__ for layer in detector.backbone_layers()] == [backbone]
    assert [level.stride for level in detector.levels] == strides
    _, losses = detector(torch.rand(2, 3, 64, 64), TARGETS)
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None for p in detector.parameters() if p.requires_grad)
    save_detector(detector.eval(), tmp_path / "run")
    state = load_detector(tmp_path / "run").model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in detector.model.state_dict().items())


def test_a_saved_student_starts_another_of_other_classes(saved: Saved, tmp_path: Path) -> None:
    first = student(saved("d_fine"), classes=("x", "disc"))
    save_detector(first, tmp_path / "run")
    second = build_detector(DetectorConfig(init=str(tmp_path / "run")), ("disc", "y", "z"))
    own, theirs = second.model.state_dict(), first.model.state_dict()
    rows = [key for key in own if own[key].shape != theirs[key].shape]
    assert rows
    assert all(torch.equal(own[key], theirs[key]) for key in own if key not in rows)
    assert all(torch.equal(own[key][0], theirs[key][1]) for key in rows)
    assert second.training
    images = torch.rand(2, 3, 96, 64)
    _, losses = second(images, [{"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([2])}] * 2)
    assert all(torch.isfinite(loss) for loss in losses.values())
