"""Tiny random detectors of Hugging Face transformers against the library's forward pass and processors."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.helpers.tiny_transformers import (
    CLASSES,
    LEVELS,
    NEEDED,
    OPTIONS,
    PYRAMID,
    SIZES,
    SQUARE,
    STUDENTS,
    TARGETS,
    Built,
    Saved,
    processor,
    save_model,
    student,
)
from torch import Tensor, nn

from dfmsd.detectors import load_detector
from dfmsd.detectors.huggingface.families import FAMILIES, needed_area
from dfmsd.detectors.inputsizes import InputSizes
from dfmsd.distillation.stages import StageConfig
from dfmsd.distillation.task import DistillationTask
from dfmsd.distillation.teacher import FrozenTeacher
from dfmsd.errors import DfmsdError
from dfmsd.losses.align import pair_levels
from dfmsd.types import FeaturePyramid, LevelSpec

pytestmark = NEEDED
IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
CONSTANT = re.compile(r"decoder\.(up|reg_scale)$|mask_token$|backbone\.backbone\.encoder\.layer\.3\.")
"""Two constants of D-FINE, tokens of masked patches, and a layer behind the last map."""
EMPTY = [TARGETS[1], TARGETS[1]]


def pixels(model_type: str, images: Tensor) -> Tensor:
    """Preprocess uint8 images with the library's processor."""
    made = processor(model_type)(images=list(images), do_resize=False, do_pad=False, return_tensors="pt")
    values: Tensor = made["pixel_values"]
    return values


def width_of(model_type: str) -> int:
    """Width of images of 96 pixels of height that the family takes."""
    return 96 if model_type in SQUARE else 64


def uint8_images(model_type: str) -> Tensor:
    return torch.randint(256, (2, 3, 96, width_of(model_type)), dtype=torch.uint8)


@torch.no_grad()
def plain_maps(model: Any, values: Tensor) -> list[Tensor]:
    """The maps of the library's own forward pass."""
    output = model(values, output_hidden_states=True)
    kind = model.config.model_type
    if kind == "rf_detr":
        return [output.backbone_features]
    if kind == "lw_detr":
        return [value for value, _ in model.model.backbone(values, torch.ones_like(values[:, 0]))]
    if kind == "yolos":
        return [output.last_hidden_state[:, 1:-20]]
    maps = output.encoder_last_hidden_state
    return [maps] if torch.is_tensor(maps) else list(maps)


def shaped_as(features: FeaturePyramid, maps: list[Tensor]) -> list[Tensor]:
    """Features as the library has them: some families keep those of all levels in one sequence, ``N x L x C``."""
    levels = list(features.values())
    return [torch.cat([level.flatten(2).mT for level in levels], dim=1)] if maps[0].ndim == 3 else levels


def test_the_table_has_every_tested_family() -> None:
    assert set(FAMILIES) == set(OPTIONS)
    assert {name for name, family in FAMILIES.items() if family.trainable} == set(STUDENTS)


@pytest.mark.parametrize("model_type", STUDENTS)
def test_the_backbone_is_the_librarys(loaded: Built, model_type: str) -> None:
    detector = loaded(model_type)
    (backbone,) = detector.backbone_layers()
    inside = {id(parameter) for parameter in backbone.parameters()}
    names = {name for name, parameter in detector.named_parameters() if id(parameter) in inside}
    paths = {"deimv2": "conv_encoder.model", "lw_detr": "backbone.backbone", "rf_detr": "backbone.backbone"}
    path = f"model.model.{paths.get(model_type, 'backbone')}."
    assert names == {name for name, _ in detector.named_parameters() if name.startswith(path)}


@pytest.mark.parametrize("model_type", list(FAMILIES))
def test_features_equal_the_encoder_output_of_a_plain_forward_pass(loaded: Built, model_type: str) -> None:
    detector = loaded(model_type)
    assert not any(module.training for module in detector.modules())
    images = uint8_images(model_type)
    features = detector.features(images / 255)
    expected = plain_maps(detector.model, pixels(model_type, images))
    torch.testing.assert_close(shaped_as(features, expected), expected, rtol=1e-5, atol=1e-5)
    for level in detector.levels:
        shape = (2, level.channels, -(-96 // level.stride), -(-width_of(model_type) // level.stride))
        assert features[level.name].shape == shape


@pytest.mark.parametrize(
    ("model_type", "strides"),
    [
        ("d_fine", (8, 16, 32)),
        ("deimv2", (8, 16, 32)),
        ("deformable_detr", (8, 16, 32, 64)),
        ("lw_detr", (8, 32)),
        ("rf_detr", (16,)),
        ("detr", (32,)),
        ("dab-detr", (32,)),
        ("yolos", (16,)),
    ],
)
def test_levels_are_read_from_the_model(loaded: Built, model_type: str, strides: tuple[int, ...]) -> None:
    levels = loaded(model_type).levels
    assert tuple(level.stride for level in levels) == strides
    assert {level.channels for level in levels} == {32 if model_type == "yolos" else 64}


@pytest.mark.parametrize("model_type", ["deformable_detr", "deimv2", "lw_detr", "rf_detr", "yolos"])
def test_a_cell_of_a_map_depends_on_its_place_in_the_image(loaded: Built, model_type: str) -> None:
    """Memory and tokens are reshaped row by row, windows put together again."""
    detector = loaded(model_type)
    torch.manual_seed(0)  # the fixture may have drawn
    image = torch.rand(1, 3, 128, 128 if model_type in SQUARE else 64)
    changed = image.clone()
    changed[..., 96:112, :16] = 0
    level = detector.levels[0]
    one, other = detector.features(image)[level.name], detector.features(changed)[level.name]
    difference = (one - other).abs().sum(1)[0]
    row, column = divmod(int(difference.argmax()), difference.shape[1])
    assert (row * level.stride // 16, column * level.stride // 16) == (6, 0)


def test_patches_and_windows_decide_which_sizes_rf_detr_takes(tmp_path: Path) -> None:
    """Its windows are put together in another order than they are cut, unless the image is a square."""
    save_model("rf_detr", tmp_path, backbone_config={**OPTIONS["rf_detr"]["backbone_config"], "patch_size": 14})
    detector = load_detector(f"hf:{tmp_path}")
    assert detector.levels == (LevelSpec("p4", 64, 14),)
    assert detector.features(torch.rand(1, 3, 224, 224))["p4"].shape == (1, 64, 16, 16)
    with pytest.raises(DfmsdError, match="images of 256 x 256 pixels: pad both sides to multiples of 28"):
        detector.features(torch.rand(1, 3, 256, 256))
    with pytest.raises(DfmsdError, match="images of 224 x 448 pixels: this model takes squares only"):
        detector.features(torch.rand(1, 3, 224, 448))
    with pytest.raises(DfmsdError, match="cannot take images of 256 pixels a side; choose one of 224, 448, 672"):
        detector.choose_size(256)


@pytest.mark.parametrize(
    ("model_type", "queries", "side"), [("rt_detr", 84, 64), ("rt_detr", 85, 96), ("rf_detr", 16, 64)]
)
def test_the_least_size_has_a_cell_for_each_query(loaded: Built, model_type: str, queries: int, side: int) -> None:
    """64 pixels a side have 8 x 8 + 4 x 4 + 2 x 2 = 84 cells of strides 8, 16 and 32, and 4 x 4 of stride 16."""
    detector = loaded(model_type)
    config = SimpleNamespace(num_queries=queries)
    assert InputSizes(area=needed_area(detector.family, config, detector.levels)).fitting(1) == side


def test_images_with_fewer_cells_than_queries_are_refused(loaded: Built) -> None:
    detector = loaded("rf_detr")
    detector.input_sizes.check(torch.zeros(1, 3, 64, 64))
    for call in (detector.features, lambda images: detector.detect(images, [(32, 32)])):
        with pytest.raises(DfmsdError, match="32 x 32 pixels are too small for this model: a square needs at least 64"):
            call(torch.rand(1, 3, 32, 32))


def test_a_teacher_stops_after_its_encoder(loaded: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = loaded("rt_detr")
    monkeypatch.setattr(detector.model.model.decoder, "forward", lambda *_, **__: pytest.fail("the decoder ran"))
    detector.features(torch.rand(1, 3, 64, 64))
    assert not detector.model.model.encoder._forward_hooks


@pytest.mark.parametrize("model_type", list(FAMILIES))
def test_detections_equal_the_processors(loaded: Built, model_type: str) -> None:
    detector = copy.deepcopy(loaded(model_type))
    assert detector.class_names == CLASSES
    for layer in dict(detector.model.named_children()).values():
        if isinstance(layer, nn.Linear):  # DETR's classifier, which scores all queries alike at first
            nn.init.normal_(layer.weight, std=0.1)
            nn.init.zeros_(layer.bias)
            nn.init.constant_(layer.bias[::3], -9)  # N/A, and no object
    images = torch.rand(2, 3, 96, width_of(model_type))
    found = detector.detect(images, SIZES)
    normalize = processor(model_type).do_normalize
    assert normalize == (FAMILIES[model_type].processor != "RTDetrImageProcessor")
    with torch.no_grad():
        output = detector.model((images - IMAGENET_MEAN) / IMAGENET_STD if normalize else images)
    expected = processor(model_type).post_process_object_detection(
        output, threshold=0.05, target_sizes=[tuple(images.shape[-2:])] * 2
    )
    for own, theirs, (height, width) in zip(found, expected, SIZES, strict=True):
        used = theirs["labels"] > 0  # 0 is N/A
        order = theirs["scores"][used].argsort(descending=True, stable=True)
        limits = torch.tensor([width, height, width, height])
        assert len(own["scores"]) > 0
        assert torch.equal(own["scores"], theirs["scores"][used][order])
        assert torch.equal(own["labels"], theirs["labels"][used][order] - 1)
        assert torch.equal(own["boxes"], theirs["boxes"][used][order].clamp(min=0).minimum(limits))


@pytest.mark.parametrize("model_type", list(FAMILIES))
def test_scores_and_boxes_of_queries_are_those_that_the_processor_reads(loaded: Built, model_type: str) -> None:
    detector = loaded(model_type)
    assert detector.has_queries
    images = torch.rand(2, 3, 96, width_of(model_type))
    with torch.no_grad():
        pyramid, queries = detector.features_with_queries(images)
    features = detector.features(images)
    assert all(torch.equal(level, features[name]) for name, level in pyramid.items())
    assert queries.logits.shape == (2, queries.boxes.shape[1], len(CLASSES))
    found = processor(model_type).post_process_object_detection(
        SimpleNamespace(**detector.model(detector._normalize(images))), threshold=0.0, target_sizes=[(1, 1)] * 2
    )
    for image, expected in enumerate(found):
        scores = queries.logits[image].sigmoid()
        for score, label, box in zip(*(expected[key].detach() for key in ("scores", "labels", "boxes")), strict=True):
            if label > 0:  # 0 is N/A
                near = (scores[:, label - 1] - score).abs() < 1e-5
                assert near.any()
                assert bool(((queries.corners[image][near] - box).abs().amax(1) < 1e-5).any())


@pytest.mark.parametrize("model_type", STUDENTS)
def test_queries_of_denoising_and_of_further_groups_are_left_out(learning: Built, model_type: str) -> None:
    """What those that detect predict does not depend on them."""
    detector = learning(model_type)
    for layer in detector.modules():
        for name in ("p", "dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(layer, name, None), float):
                setattr(layer, name, 0.0)
        if isinstance(layer, nn.BatchNorm2d):  # normalize by the batch in both modes
            layer.running_mean = layer.running_var = None
    config = detector.model.config
    images = torch.rand(2, 3, 64, 64)
    queries = detector.forward_with_queries(images, TARGETS)[2]
    assert queries.logits.shape == (2, config.num_queries, len(CLASSES))
    if FAMILIES[model_type].groups:
        others = detector.eval().features_with_queries(images)[1]
    else:
        config.num_denoising = 0
        others = detector.forward_with_queries(images, TARGETS)[2]
    torch.testing.assert_close(queries, others, rtol=1e-3, atol=1e-3)


def test_at_most_100_detections_are_returned(learning: Built) -> None:
    detector = learning("rt_detr").eval()
    detector.model.config.num_queries = 150
    for layer in detector.model.model.decoder.class_embed:
        nn.init.constant_(layer.bias, 3.0)
    (found,) = detector.detect(torch.rand(1, 3, 96, 96), [(96, 96)])
    assert len(found["scores"]) == 100
    assert (found["scores"].diff() <= 0).all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("model_type", STUDENTS)
def test_losses_equal_the_librarys_on_the_processors_batch(learning: Built, model_type: str, training: bool) -> None:
    detector = learning(model_type).train(training)
    images = uint8_images(model_type)
    boxes = [[8, 16, 32, 48], [0, 0, 32, 24]]  # x, y, width, height
    annotations = [
        {"bbox": box, "category_id": label, "area": box[2] * box[3], "iscrowd": 0, "image_id": 0}
        for box, label in zip(boxes, (1, 0), strict=True)
    ]
    coco = [{"image_id": 0, "annotations": annotations}, {"image_id": 1, "annotations": []}]
    batch = processor(model_type)(
        images=list(images), annotations=coco, do_resize=False, do_pad=False, return_tensors="pt"
    )
    torch.manual_seed(1)
    expected = detector.model(batch["pixel_values"], labels=list(batch["labels"]))
    torch.manual_seed(1)  # of the denoising queries
    pyramid, losses = detector(images / 255, TARGETS)
    weights = FAMILIES[model_type].weights
    if weights is None:
        assert any("_dn_" in name for name in losses) == training
        assert set(losses) == set(expected.loss_dict)
    else:
        assert set(losses) == {name for name in expected.loss_dict if name.startswith(tuple(weights))}
    torch.testing.assert_close(torch.stack(list(losses.values())).sum(), expected.loss, rtol=1e-4, atol=1e-4)
    for name, value in losses.items():
        weight = weights[name[: name.find("_", 5)] if name.count("_") > 1 else name] if weights else 1.0
        factor = getattr(detector.model.config, weight) if isinstance(weight, str) else weight
        torch.testing.assert_close(value, factor * expected.loss_dict[name], rtol=1e-3, atol=1e-4)
    torch.manual_seed(1)  # of dropout
    maps = plain_maps(detector.model, batch["pixel_values"])
    torch.testing.assert_close(shaped_as(pyramid, maps), maps, rtol=1e-4, atol=1e-4)
    assert detector.levels == LEVELS.get(model_type, PYRAMID)
    assert tuple(pyramid) == tuple(level.name for level in detector.levels)


@pytest.mark.parametrize("model_type", STUDENTS)
def test_gradients_reach_every_trainable_parameter(learning: Built, model_type: str) -> None:
    detector = learning(model_type)
    for parameter in detector.parameters():  # some last layers start with zeros, which blocks gradients
        if parameter.ndim == 2 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    _, losses = detector(torch.rand(2, 3, 64, 64), TARGETS)
    torch.stack(list(losses.values())).sum().backward()
    parameters = dict(detector.named_parameters())
    frozen = {name for name, p in parameters.items() if not p.requires_grad}
    assert frozen == {name for name in parameters if CONSTANT.search(name)}
    idle = {n for n, p in parameters.items() if p.requires_grad and (p.grad is None or not p.grad.any())}
    assert idle == set()
    assert all(bool(p.grad.isfinite().all()) for p in parameters.values() if p.grad is not None)


@pytest.mark.parametrize("model_type", STUDENTS)
def test_batches_without_any_box_have_finite_losses(learning: Built, model_type: str) -> None:
    detector = learning(model_type)
    _, losses = detector(torch.rand(2, 3, 64, 64), EMPTY)
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert total.isfinite()
    assert all(bool(p.grad.isfinite().all()) for p in detector.parameters() if p.grad is not None)


@pytest.mark.parametrize("model_type", STUDENTS)
def test_half_precision_and_channels_last_work(learning: Built, model_type: str) -> None:
    detector = learning(model_type).to(memory_format=torch.channels_last)
    images = torch.rand(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    torch.manual_seed(1)
    _, full = detector(images, TARGETS)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        pyramid, half = detector(images, TARGETS)
        found = detector.detect(images, [(64, 64)] * 2)
    assert {value.dtype for value in pyramid.values()} == {torch.bfloat16}
    assert {value.dtype for value in half.values()} == {torch.float32}
    assert {value.dtype for one in found for value in (one["boxes"], one["scores"])} == {torch.float32}
    total = torch.stack([value.float() for value in half.values()]).sum()
    total.backward()
    # the queries that are chosen may be others
    assert total.item() == pytest.approx(torch.stack(list(full.values())).sum().item(), rel=0.3)


def test_families_that_only_teach_are_refused_as_students(saved: Saved, loaded: Built) -> None:
    message = "of type detr can only teach; as a student, choose one of rt_detr, rt_detr_v2, d_fine"
    with pytest.raises(DfmsdError, match=message):
        student(saved("detr"))
    with pytest.raises(DfmsdError, match=message):
        loaded("detr")(torch.rand(2, 3, 64, 64), TARGETS)


def test_a_teacher_of_one_level_is_paired_with_the_level_of_its_stride(loaded: Built) -> None:
    ((student, teacher),) = pair_levels(PYRAMID, loaded("detr").levels)
    assert (student.name, teacher.name, teacher.channels) == ("p5", "p5", 64)


def test_sizes_that_the_encoder_cannot_take_are_refused(learning: Built) -> None:
    detector = learning("rt_detr")
    images = torch.rand(2, 3, 72, 64)
    calls = (
        lambda: detector.features(images),
        lambda: detector(images, TARGETS),
        lambda: detector.detect(images, [(72, 64)] * 2),
    )
    for call in calls:
        with pytest.raises(DfmsdError, match="images of 72 x 64 pixels: pad both sides to multiples of 32"):
            call()


@pytest.mark.slow
@pytest.mark.parametrize("model_type", STUDENTS)
def test_without_labels_nothing_behind_the_maps_learns(learning: Built, model_type: str) -> None:
    student, teacher = learning(model_type), learning(model_type)
    with torch.no_grad():
        for weight in teacher.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    before = copy.deepcopy(student.state_dict())
    stages = [StageConfig(1, "t", labels=False), StageConfig(1, "t")]
    task = DistillationTask(student, stages, [[FrozenTeacher(teacher, "t")]] * 2, {"name": "pkd"}).train()
    optimizer = torch.optim.AdamW(task.trainable.parameters(), lr=0.1, weight_decay=0.5)
    sum(task(torch.rand(2, 3, 64, 64), TARGETS).values()).backward()
    optimizer.step()
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert not [name for name in changed if "decoder" in name or "_head" in name or "_embed." in name]
