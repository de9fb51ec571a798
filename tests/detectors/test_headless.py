"""Backbones of timm and transformers as teachers: their maps and normalization, without a head."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from tests.helpers.tiny_transformers import needs_transformers
from torch import Tensor, nn
from torch.testing import assert_close

from dfmsd.detectors import DetectorConfig, build_detector, load_detector
from dfmsd.detectors.headless import SingleScalePyramid
from dfmsd.detectors.timm_backbone import TimmPyramid
from dfmsd.distillation.stages import StageConfig
from dfmsd.distillation.task import DistillationTask
from dfmsd.distillation.teacher import FrozenTeacher
from dfmsd.errors import DfmsdError
from dfmsd.types import LevelSpec

IMAGES = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(1))


def normalized(model: Any, images: Tensor = IMAGES) -> Tensor:
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (images - mean) / std


def averaged(value: Tensor, factor: int) -> Tensor:
    """Mean over squares of cells, one by one."""
    rows, columns = (range(0, side, factor) for side in value.shape[-2:])
    cells = [[value[..., y : y + factor, x : x + factor].mean((-2, -1)) for x in columns] for y in rows]
    return torch.stack([torch.stack(row, -1) for row in cells], -2)


@pytest.fixture(scope="module")
def resnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of timm's smallest ResNet, classifier included."""
    file = tmp_path_factory.mktemp("timm") / "weights.safetensors"
    torch.manual_seed(7)
    save_file(timm.create_model("test_resnet").state_dict(), file)
    return file


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_a_pyramid_equals_timms_with_the_weights_of_the_file(name: str, tmp_path: Path) -> None:
    state = timm.create_model(name).state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    teacher = load_detector(f"timm:{name}?weights={tmp_path}/weights.safetensors")
    body: Any = timm.create_model(name, features_only=True).eval()
    body.load_state_dict(
        {key: state[key.replace("stages_", "stages.").replace("stem_", "stem.")] for key in body.state_dict()}
    )
    maps = [value for value in body(normalized(body)) if IMAGES.shape[-1] // value.shape[-1] >= 4]
    assert [level.stride for level in teacher.levels] == [4, 8, 16, 32]
    assert [level.channels for level in teacher.levels] == [value.shape[1] for value in maps]
    assert_close(list(teacher.features(IMAGES).values()), maps)
    assert teacher.class_names == ()
    assert not teacher.training


def test_the_map_of_a_plain_transformer_becomes_a_pyramid(tmp_path: Path) -> None:
    model: Any = timm.create_model("test_vit", dynamic_img_size=True).eval()
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    teacher = load_detector(f"timm:test_vit?weights={tmp_path}/vit.safetensors")
    value = model.forward_intermediates(normalized(model), indices=1, norm=True, intermediates_only=True)[-1]
    width = value.shape[1]
    assert teacher.levels == tuple(LevelSpec(f"p{n}", width, 2**n) for n in (3, 4, 5))
    pyramid = teacher.features(IMAGES)
    assert_close(pyramid["p4"], value)
    assert_close(pyramid["p5"], averaged(value, 2))
    assert pyramid["p3"].shape == (2, width, 12, 8)
    # halfway between the centers of two cells and of the next two: 9/16, 3/16, 3/16 and 1/16 of them
    inner = (9 * value[..., 1, 1] + 3 * value[..., 1, 2] + 3 * value[..., 2, 1] + value[..., 2, 2]) / 16
    assert_close(pyramid["p3"][..., 3, 3], inner)


@pytest.mark.parametrize(("patch", "stride"), [(14, 16), (16, 16), (8, 8), (32, 32)])
def test_a_patch_of_any_size_covers_the_cells_of_a_stride(patch: int, stride: int) -> None:
    """The mean of a ramp over a patch is the position of its cell, in pixels of the image."""
    body = nn.Conv2d(3, 1, patch, patch, bias=False)
    nn.init.constant_(body.weight, 1 / (3 * patch**2))
    seen: list[Tensor] = []

    def run(pixels: Tensor) -> list[Tensor]:
        seen.append(pixels)
        return [torch.zeros(1), body(pixels)]  # the last one counts

    model = SingleScalePyramid(nn.Identity(), patch)
    model.body.forward = run  # type: ignore[assignment]
    ramp = (torch.arange(128.0) + 0.5).expand(1, 3, 96, 128)
    levels = model(ramp)
    assert model.stride == stride
    assert seen[0].shape[-2:] == (96 * patch // stride, 128 * patch // stride)
    for value, width in zip(levels, (8, 16, 32), strict=True):
        assert value.shape == (1, 1, 96 // width, 128 // width)
        centers = torch.arange(width / 2, 128, width)
        inside = slice(stride // width // 2, len(centers) - stride // width // 2)  # of the outermost cells' centers
        assert_close(value[0, 0, 0][inside], centers[inside], rtol=0, atol=0.05)


def test_channels_last_maps_are_permuted() -> None:
    class Body(nn.Module):
        output_fmt = "NHWC"

        def forward(self, pixels: Tensor) -> list[Tensor]:
            return [pixels.permute(0, 2, 3, 1)]

    assert_close(TimmPyramid(Body())(IMAGES)[0], IMAGES)


def test_a_backbone_can_only_teach(resnet_file: Path) -> None:
    teacher = load_detector(f"timm:test_resnet?weights={resnet_file}")
    for use in (lambda: teacher(IMAGES, []), lambda: teacher.detect(IMAGES, [(96, 64)] * 2)):
        with pytest.raises(DfmsdError, match=r"timm:test_resnet\?weights=\S+ has no detection head"):
            use()
    with pytest.raises(DfmsdError, match="images of 90 x 64 pixels: pad both sides to multiples of 32"):
        teacher.features(torch.rand(1, 3, 90, 64))
    student = build_detector(DetectorConfig(fpn_channels=16, head_convs=1), ["a"])
    stages = [StageConfig(1, "t")]
    with pytest.raises(DfmsdError, match=r"crosskd .*the teacher has no dense head that can be cut") as error:
        DistillationTask(student, stages, [[FrozenTeacher(teacher, "t")]], {"name": "crosskd"})
    assert "\n" not in str(error.value)
    task = DistillationTask(student, stages, [[FrozenTeacher(teacher, "t")]], {"name": "pkd"})
    assert [pair.teacher.stride for pair in task.lessons[0].criterion.pairs] == [8, 16, 32]


def _offline(*_: Any, **options: Any) -> Any:
    if options.get("pretrained"):
        raise OSError("no route to host")
    return _create(*_, **options)


_create = timm.create_model


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("timm:tes_resnet", r"unknown backbone 'tes_resnet': did you mean test_resnet"),
        ("timm:test_resnet?weights=gone.pth", r"weights file gone\.pth does not exist"),
        ("timm:test_resnet?weigths=gone.pth", r"unknown backbone 'test_resnet\?weigths=gone\.pth'"),
        ("timm:test_mambaout", r"ImageNet weights are unavailable .*timm:test_mambaout\?weights=FILE"),
    ],
)
def test_wrong_references_are_refused(reference: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", _offline)
    with pytest.raises(DfmsdError, match=message) as error:
        load_detector(reference)
    assert "\n" not in str(error.value)


def test_weights_of_another_backbone_and_models_of_one_size_are_refused(resnet_file: Path) -> None:
    with pytest.raises(DfmsdError, match=r"timm:test_vit\?weights=\S+ does not fit the backbone: missing"):
        load_detector(f"timm:test_vit?weights={resnet_file}")
    with pytest.raises(DfmsdError, match=r"timm:gmlp_ti16_224 has no feature maps of images of any size \(.*256"):
        load_detector("timm:gmlp_ti16_224", trained=False)


SMALL: dict[str, dict[str, Any]] = {
    "swin": {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 4, "image_size": 64},
    "convnext": {"hidden_sizes": [8, 8, 16, 24], "depths": [1, 1, 1, 1]},
    "dinov2": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14, "image_size": 56},
}
CHANNELS = {"swin": [8, 16, 32, 64], "convnext": [8, 8, 16, 24], "dinov2": [32, 32, 32]}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a random classifier of a type, as the library saves it: do not change it."""
    root = tmp_path_factory.mktemp("hf")

    @cache
    def save(kind: str) -> Path:
        hf = import_module("transformers")
        torch.manual_seed(2)
        config = hf.AutoConfig.for_model(kind, **SMALL[kind])
        hf.AutoModelForImageClassification.from_config(config).save_pretrained(root / kind)
        hf.ConvNextImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.5, 0.25]).save_pretrained(root / kind)
        return root / kind

    return save


@needs_transformers
@pytest.mark.transformers
@pytest.mark.parametrize("kind", list(SMALL))
def test_a_backbone_of_transformers_teaches_with_its_classifiers_weights(
    kind: str, classifier: Callable[[str], Path]
) -> None:
    hf = import_module("transformers")
    teacher = load_detector(f"hf:{classifier(kind)}")
    strides = [8, 16, 32] if kind == "dinov2" else [4, 8, 16, 32]
    assert [(level.stride, level.channels) for level in teacher.levels] == list(
        zip(strides, CHANNELS[kind], strict=True)
    )
    images = torch.rand(2, 3, 128, 128)
    pixels = (images - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.5, 0.25]).view(3, 1, 1)
    plain = hf.AutoModel.from_pretrained(classifier(kind)).eval()
    pyramid = list(teacher.features(images).values())
    with torch.no_grad():
        if kind == "dinov2":
            resized = nn.functional.interpolate(pixels, scale_factor=14 / 16, mode="bilinear")
            tokens = plain(pixel_values=resized).last_hidden_state[:, 1:]  # after the class token, normalized
            assert_close(pyramid[1], tokens.mT.unflatten(2, (8, 8)))
            assert_close(pyramid[2], averaged(pyramid[1], 2))
        else:
            # the library normalises each stage's output over its channels
            # the library normalises each stage's output over its channels; this is the last one's before that
            states = plain(pixel_values=pixels, output_hidden_states=True)
            last = states.reshaped_hidden_states[-1] if kind == "swin" else states.hidden_states[-1]
            normal = nn.functional.layer_norm(last.movedim(1, -1), last.shape[1:2], eps=1e-5).movedim(-1, 1)
            assert_close(pyramid[-1], normal, rtol=1e-3, atol=1e-3)


@needs_transformers
@pytest.mark.transformers
def test_missing_files_of_a_backbone_are_named(classifier: Callable[[str], Path], tmp_path: Path) -> None:
    source = classifier("convnext")
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((source / file).read_bytes())
    assert load_detector(f"hf:{tmp_path}", trained=False).levels == load_detector(f"hf:{source}").levels
    with pytest.raises(DfmsdError, match=r"has no preprocessor_config\.json"):
        load_detector(f"hf:{tmp_path}")
    (tmp_path / "preprocessor_config.json").write_bytes((source / "preprocessor_config.json").read_bytes())
    state = {key: value for key, value in load_file(source / "model.safetensors").items() if "stages.2" not in key}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DfmsdError, match=r"its weights do not fit its config\.json: \d+ missing .*stages\.2"):
        load_detector(f"hf:{tmp_path}")
    with pytest.raises(DfmsdError, match="is a convnext: expected a detector of type rt_detr"):
        build_detector(DetectorConfig(f"hf:{tmp_path}"), ["a"])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(DfmsdError, match=r"is a bert: .*a model that has an AutoBackbone, such as swin or dinov2"):
        load_detector(f"hf:{tmp_path}")
