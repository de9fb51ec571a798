"""torchvision's detectors by name: as students with untrained heads, and with their published weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import MobileNet_V3_Large_Weights, ResNet50_Weights, VGG16_Weights

from dfmsd.detectors import DetectorConfig, build_detector, load_detector, save_detector, torchvision_archs
from dfmsd.errors import DfmsdError

NAMES = ["a", "b"]
LIGHT = ("fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large")
ALL = [pytest.param(name, marks=() if name in LIGHT else pytest.mark.slow) for name in torchvision_archs()]
STRIDES = {
    "fasterrcnn_m": [32, 32, 64],
    "fasterrcnn_r": [4, 8, 16, 32, 64],
    "maskrcnn": [4, 8, 16, 32, 64],
    "fcos": [8, 16, 32, 64, 128],
    "retinanet": [8, 16, 32, 64, 128],
    "ssd300": [8, 16, 32, 64, 100, 300],
    "ssdlite": [16, 32, 64, 128, 256, 512],
}
WEIGHTS = [
    f"{enum.__name__}.{member}"
    for name in torchvision_archs()
    for enum in [torchvision.models.get_model_weights(name)]
    for member in enum.__members__
]
SSDLITE = "SSDLite320_MobileNet_V3_Large_Weights.COCO_V1"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's folder of downloaded weights, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_all_detectors_except_keypoint_ones_are_listed() -> None:
    theirs = torchvision.models.list_models(module=torchvision.models.detection)
    assert set(theirs) - set(torchvision_archs()) == {"keypointrcnn_resnet50_fpn"}
    assert set(torchvision_archs()) <= set(theirs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_each_student_is_restored_from_its_file(name: str, tmp_path: Path) -> None:
    detector = build_detector(DetectorConfig(name), NAMES)
    assert detector.training
    assert [level.stride for level in detector.levels] == next(
        strides for begin, strides in STRIDES.items() if name.startswith(begin)
    )
    assert detector.label_ids.tolist() == ([0, 1] if name.startswith(("fcos", "retinanet")) else [1, 2])
    for key, parameter in detector.named_parameters():
        if "cls_" in key or "classification_head" in key:
            nn.init.normal_(parameter, std=0.1)  # or FCOS's scores would all lie below its threshold
    save_detector(detector.eval(), tmp_path)
    loaded = load_detector(tmp_path)
    assert (loaded.levels, loaded.config, loaded.class_names) == (detector.levels, detector.config, ("a", "b"))
    images, sizes = torch.rand(1, 3, 320, 320), [(320, 300)]
    (got,), (want,) = loaded.detect(images, sizes), detector.detect(images, sizes)
    assert len(want["scores"]) > 0
    assert all(torch.equal(got[key], want[key]) for key in ("boxes", "scores", "labels"))


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("fasterrcnn_mobilenet_v3_large_320_fpn", MobileNet_V3_Large_Weights.IMAGENET1K_V1),
        pytest.param("retinanet_resnet50_fpn_v2", ResNet50_Weights.IMAGENET1K_V1, marks=pytest.mark.slow),
        pytest.param("ssd300_vgg16", VGG16_Weights.IMAGENET1K_FEATURES, marks=pytest.mark.slow),
    ],
)
def test_imagenet_weights_go_where_torchvision_puts_them(
    name: str, weights: torchvision.models.WeightsEnum, cache: Path
) -> None:
    classifier = torchvision.models.get_model(weights.__class__.__name__.removesuffix("_Weights").lower())
    file = cache / Path(weights.url).name
    torch.save({key: torch.randn_like(value.float()) for key, value in classifier.state_dict().items()}, file)
    theirs = torchvision.models.get_model(name, weights_backbone=weights).backbone.state_dict()
    for pretrained in (True, str(file)):
        own = build_detector(DetectorConfig(name, pretrained=pretrained), NAMES).model
        assert all(parameter.requires_grad for parameter in own.parameters())
        state = own.backbone.state_dict()
        given = [
            key for key in state if key.startswith(("body.", "features.", "extra.0.")) and "num_batches" not in key
        ]
        given = [key for key in given if not key.startswith("extra.0.7")]  # SSD300's own
        assert len(given) > 20
        assert all(torch.equal(state[key], theirs[key]) for key in given)


def test_missing_imagenet_weights_are_refused(cache: Path) -> None:
    with pytest.raises(DfmsdError, match=r"no ImageNet weights of ssdlite320.*set pretrained: false, or arch: ssdlite"):
        build_detector(DetectorConfig("ssdlite320_mobilenet_v3_large", pretrained=True), NAMES)
    wrong = cache / "wrong.pth"
    torch.save({"weight": torch.zeros(1)}, wrong)
    with pytest.raises(DfmsdError, match=r"wrong\.pth does not fit the model: missing "):
        build_detector(DetectorConfig(LIGHT[0], pretrained=str(wrong)), NAMES)


def test_unknown_archs_are_refused_with_the_list() -> None:
    usages = "hf:<folder or id> or mmdet:<config>,<checkpoint> or ultralytics:<best.pt or model.yaml>"
    with pytest.raises(DfmsdError, match=rf"unknown arch 'yolo': .*gfl.*fasterrcnn_resnet50_fpn_v2.*{usages}$"):
        DetectorConfig("yolo")


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1", 416),  # 320 x 427 pixels
        (SSDLITE, 320),
        pytest.param("FCOS_ResNet50_FPN_Weights.COCO_V1", 1056, marks=pytest.mark.slow),  # 800 x 1067
        pytest.param("SSD300_VGG16_Weights.COCO_V1", 288, marks=pytest.mark.slow),
    ],
)
def test_published_weights_know_their_image_size(name: str, size: int) -> None:
    assert load_detector(name, trained=False).choose_size() == size


def test_detectors_that_dfmsd_builds_do_not_take_torchvisions_size(tmp_path: Path) -> None:
    for arch in ("fcos", "fasterrcnn_mobilenet_v3_large_320_fpn"):
        built = build_detector(DetectorConfig(arch), NAMES)
        assert built.image_size is None
        assert load_detector(save_detector(built, tmp_path)).image_size is None


@pytest.mark.slow
def test_published_weights_of_ssdlite_load_from_the_cache(cache: Path) -> None:
    saved = torchvision.models.get_model("ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None)
    for parameter in saved.head.classification_head.parameters():
        nn.init.normal_(parameter, std=0.5)
    torch.save(saved.state_dict(), cache / "ssdlite320_mobilenet_v3_large_coco-a79551df.pth")
    detector = load_detector(SSDLITE)
    assert not detector.training
    assert detector.class_names[::79] == ("person", "toothbrush")
    assert detector.label_ids[[0, 11, 79]].tolist() == [1, 13, 90]
    assert detector.mean.flatten().tolist() == detector.std.flatten().tolist() == [0.5] * 3
    assert all(torch.equal(value, saved.state_dict()[key]) for key, value in detector.model.state_dict().items())
    images = torch.rand(2, 3, 320, 320)
    with torch.no_grad():
        expected = saved.eval()(list(images))
    for got, want in zip(detector.detect(images, [(320, 320)] * 2), expected, strict=True):
        known = torch.isin(want["labels"], detector.label_ids)
        assert len(got["labels"]) == known.sum() > 0  # torchvision's numbering has gaps, where it may see objects too
        torch.testing.assert_close(got["boxes"], want["boxes"][known])
        assert torch.equal(detector.label_ids[got["labels"]], want["labels"][known])


@pytest.mark.slow
@pytest.mark.parametrize("name", WEIGHTS)
def test_every_name_of_weights_is_known(name: str) -> None:
    detector = load_detector(name, trained=False)
    assert len(detector.class_names) == 80


def test_keypoints_are_refused_by_name() -> None:
    for name in ("COCO_V1", "COCO_LEGACY"):
        with pytest.raises(DfmsdError, match=r"KeypointRCNN_ResNet50_FPN_Weights.* is not supported: Keypoint R-CNN"):
            load_detector(f"KeypointRCNN_ResNet50_FPN_Weights.{name}")
