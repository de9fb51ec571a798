"""Tiny random detectors of MMDetection's shipped configs, against the library's loading, normalization and passes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.helpers.tiny_mmdet import CLASSES, FAMILIES, NEEDED, SIZES, TARGETS, WIDTH, Saved, save_config, student
from torch import Tensor

from dfmsd.detectors import load_detector
from dfmsd.detectors.mmdet.detector import read_normalization, read_strides, scalars
from dfmsd.detectors.mmdet.files import import_mmdet
from dfmsd.errors import DfmsdError

pytestmark = NEEDED
ONE_STAGE, TWO_STAGE = (8, 16, 32, 64, 128), (4, 8, 16, 32, 64)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def uint8_images(height: int = 96, width: int = 64) -> Tensor:
    return torch.randint(256, (2, 3, height, width), dtype=torch.uint8)


def library_model(files: Any) -> Any:
    """The model as the library loads it, without its mask branch."""
    from mmdet.apis import init_detector

    model = init_detector(str(files.config), str(files.checkpoint), device="cpu", palette="random")
    if model.with_mask:
        model.roi_head.mask_head = None
    return model


def library_batch(model: Any, images: Tensor, sizes: list[tuple[int, int]]) -> dict[str, Any]:
    """Preprocess images as the library loads them: BGR, 0..255."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    samples = []
    for size, target in zip(sizes, TARGETS, strict=True):
        sample = DetDataSample(metainfo={"img_shape": size, "ori_shape": size, "scale_factor": (1.0, 1.0)})
        sample.gt_instances = InstanceData(bboxes=target["boxes"], labels=target["labels"])
        samples.append(sample)
    batch: dict[str, Any] = model.data_preprocessor({"inputs": list(images.flip(1)), "data_samples": samples})
    return batch


def test_levels_are_read_from_the_priors(saved_mmdet: Saved, family: str) -> None:
    detector = load_detector(saved_mmdet(family).reference)
    assert not any(module.training for module in detector.modules())
    assert detector.class_names == CLASSES
    assert tuple(level.stride for level in detector.levels) == (TWO_STAGE if "rcnn" in family else ONE_STAGE)
    assert {level.channels for level in detector.levels} == {WIDTH}
    odd = detector.features(torch.rand(1, 3, 320, 320))  # the coarsest map has 3 cells, not 2.5
    assert [value.shape[-1] for value in odd.values()] == [-(-320 // level.stride) for level in detector.levels]


def test_features_and_detections_are_the_librarys(saved_mmdet: Saved, family: str) -> None:
    files = saved_mmdet(family)
    detector, model = load_detector(files.reference), library_model(files)
    images = uint8_images()
    batch = library_batch(model, images, SIZES)
    with torch.no_grad():
        maps, expected = model.extract_feat(batch["inputs"]), model.predict(**_named(batch))
        features = detector.features(images / 255)
    torch.testing.assert_close(list(features.values()), list(maps), rtol=1e-3, atol=1e-4)
    for own, theirs, (height, width) in zip(detector.detect(images / 255, SIZES), expected, SIZES, strict=True):
        found = theirs.pred_instances
        assert len(found.scores) > 1
        assert (own["scores"].diff() <= 0).all()
        rows = [
            torch.cat([boxes, 100 * labels[:, None], scores[:, None]], dim=1)
            for boxes, labels, scores in (
                (own["boxes"], own["labels"], own["scores"]),
                (found.bboxes, found.labels, found.scores),
            )
        ]
        assert len(rows[0]) == len(rows[1])
        nearest = torch.cdist(*rows, p=torch.inf).amin(dim=1)  # pixels; equal scores may come in another order
        assert nearest.max() < 0.01
        assert own["boxes"][:, 0::2].max() <= width
        assert own["boxes"][:, 1::2].max() <= height
        assert own["boxes"].min() >= 0


@pytest.mark.parametrize("training", [True, False])
def test_losses_are_the_librarys_and_reach_every_parameter(saved_mmdet: Saved, family: str, training: bool) -> None:
    files = saved_mmdet(family)
    detector, model = student(files, pretrained=True).train(training), library_model(files).train(training)
    images = uint8_images()
    batch = library_batch(model, images, [(96, 64), (96, 64)])
    if hasattr(model, "bbox_head"):
        model.bbox_head.training = True  # those of RepPoints and FCOS decode otherwise, as for detections
    torch.manual_seed(1)
    total, told = model.parse_losses(model.loss(**_named(batch)))
    torch.manual_seed(1)  # of the sampling of regions
    pyramid, losses = detector(images / 255, TARGETS)
    assert set(losses) == {name for name in told if name != "loss" and "loss" in name}
    for name, value in losses.items():
        assert value.ndim == 0
        torch.testing.assert_close(value, told[name], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(sum(losses.values()), total, rtol=1e-3, atol=1e-5)
    again = detector.features(images / 255)
    for level in detector.levels:
        torch.testing.assert_close(pyramid[level.name], again[level.name])
    assert not any(module._forward_hooks for module in detector.model.backbone.modules())


def test_gradients_reach_every_parameter_of_a_student_without_weights(saved_mmdet: Saved, family: str) -> None:
    """No layer of the backbone is frozen, even if the config freezes some of a pretrained one."""
    detector = student(saved_mmdet(family))
    before = {name: value.clone() for name, value in detector.model.named_buffers() if "running_mean" in name}
    pyramid, losses = detector(torch.rand(2, 3, 96, 96), TARGETS)
    (sum(losses.values()) + sum(value.mean() for value in pyramid.values())).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(parameter.requires_grad for parameter in detector.parameters())
    assert [name for name, parameter in detector.model.named_parameters() if parameter.grad is None] == []
    buffers = dict(detector.model.named_buffers())
    assert all(not torch.equal(value, buffers[name]) for name, value in before.items())


def test_a_batch_without_boxes_has_losses(saved_mmdet: Saved, family: str) -> None:
    detector = student(saved_mmdet(family))
    _, losses = detector(torch.rand(2, 3, 64, 64), [TARGETS[1], TARGETS[1]])
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()


@pytest.mark.parametrize("family", ["retinanet", "reppoints", "faster_rcnn_dcn"])
def test_autocast_is_close_to_float32(saved_mmdet: Saved, family: str) -> None:
    detector = student(saved_mmdet(family), pretrained=True)
    images = torch.rand(2, 3, 96, 64)
    with torch.random.fork_rng():
        _, expected = detector(images, TARGETS)
    with torch.autocast("cpu", torch.bfloat16):
        pyramid, losses = detector(images, TARGETS)
    assert all(value.dtype == torch.float32 for value in (*pyramid.values(), *losses.values()))
    for name in losses:
        torch.testing.assert_close(losses[name], expected[name], rtol=0.05, atol=0.02)
    sum(losses.values()).backward()
    detector.eval()
    found = detector.detect(images, SIZES)
    with torch.autocast("cpu", torch.bfloat16):
        rough = detector.detect(images, SIZES)
    for own, theirs in zip(rough, found, strict=True):
        assert own["boxes"].dtype == torch.float32
        torch.testing.assert_close(own["scores"][0], theirs["scores"][0], rtol=0.1, atol=0.02)


@pytest.mark.parametrize(
    ("told", "red"),
    [
        ({"mean": [10.0, 20.0, 30.0], "std": [2.0, 4.0, 5.0], "bgr_to_rgb": True}, [245 / 2, -20 / 4, -30 / 5]),
        ({"mean": [10.0, 20.0, 30.0], "std": [2.0, 4.0, 5.0], "bgr_to_rgb": False}, [-10 / 2, -20 / 4, 225 / 5]),
        ({"mean": [5.0], "std": [10.0], "bgr_to_rgb": True}, [25.0, -0.5, -0.5]),
        ({"type": "DetDataPreprocessor"}, [0.0, 0.0, 255.0]),
    ],
)
def test_normalization_equals_the_preprocessors(told: dict[str, Any], red: list[float]) -> None:
    from mmdet.models import DetDataPreprocessor

    image = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    found = read_normalization({"data_preprocessor": told})(image)
    assert found.flatten().tolist() == pytest.approx(red, abs=1e-4)
    own = DetDataPreprocessor(**{key: value for key, value in told.items() if key != "type"})
    theirs = own({"inputs": [(255 * image[0]).flip(0)], "data_samples": None})["inputs"]
    torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-4)


def test_a_missing_normalization_is_refused() -> None:
    with pytest.raises(DfmsdError, match=r"no model\.data_preprocessor, which states mean, std"):
        read_normalization({"data_preprocessor": {}})


def test_losses_are_summed_over_levels() -> None:
    losses = {"loss_a": [torch.tensor(1.0), torch.tensor([1.0, 3.0])], "s0.loss_b": torch.tensor([4.0, 6.0])}
    found = scalars({**losses, "s0.acc": torch.tensor([97.0])})
    assert {name: float(value) for name, value in found.items()} == {"loss_a": 3.0, "s0.loss_b": 5.0}


def test_a_detector_without_priors_is_refused(saved_mmdet: Saved, tmp_path: Any) -> None:
    import_mmdet("the test")
    from mmdet.models import DETR

    with pytest.raises(DfmsdError, match=r"^DETR of mmdet has no prior_generator, .* available with hf:$"):
        read_strides(DETR.__new__(DETR))
    save_config("retinanet", tmp_path / "config.py", {"model.neck.num_outs": 4})
    with pytest.raises(
        DfmsdError, match=r"RetinaNet: its prior generator has strides \[8, 16, 32, 64, 128\], but its neck returns 4"
    ):
        load_detector(f"mmdet:{tmp_path / 'config.py'}", trained=False)


@pytest.mark.parametrize("family", ["fcos", "reppoints"])
def test_detections_do_not_depend_on_the_mode_of_a_head(saved_mmdet: Saved, family: str) -> None:
    detector = load_detector(saved_mmdet(family).reference)
    images = torch.rand(1, 3, 64, 64)
    expected = detector.detect(images, [(64, 64)])[0]["boxes"]
    detector.model.bbox_head.training = True
    assert torch.equal(detector.detect(images, [(64, 64)])[0]["boxes"], expected)
    assert detector.model.bbox_head.training


def test_copies_share_nothing(saved_mmdet: Saved) -> None:
    detector = load_detector(saved_mmdet("faster_rcnn").reference)
    twin = copy.deepcopy(detector)
    images = torch.rand(1, 3, 64, 64)
    expected = detector.detect(images, [(64, 64)])[0]["boxes"]
    for parameter in detector.parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(twin.detect(images, [(64, 64)])[0]["boxes"], expected)


def test_mmcv_calls_the_substituted_operators() -> None:
    """mmcv's autograd functions call the operators correctly: their gradients are right."""
    from mmcv import ops

    from dfmsd.detectors.mmdet import mmcv_ops

    if not mmcv_ops.is_installed():
        pytest.skip("this mmcv has compiled operators")
    features = torch.randn(1, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    offset = torch.randn(1, 18, 5, 5, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(1, 9, 5, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 0.3, 0.6, 4.1, 3.7]], dtype=torch.float64)
    logits = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 1, 2, 0])
    check = torch.autograd.gradcheck
    assert check(lambda *given: ops.deform_conv2d(*given, 1, 1), (features, offset, weight))
    assert check(lambda *given: ops.modulated_deform_conv2d(*given, 1, 1), (features, offset, mask, weight, bias))
    assert check(lambda given: ops.roi_align(given, rois, 2, 1.0, 2, "avg", True), (features,))
    assert check(lambda given: ops.sigmoid_focal_loss(given, target, 2.0, 0.25, None, "mean"), (logits,))


def _named(batch: dict[str, Any]) -> dict[str, Any]:
    return {"batch_inputs": batch["inputs"], "batch_data_samples": batch["data_samples"]}
