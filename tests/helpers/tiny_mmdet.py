"""Tiny random detectors of MMDetection, made of the configs that it ships; it is imported where it is used."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from dfmsd.detectors import DetectorConfig, build_detector
from dfmsd.detectors.mmdet.files import import_mmdet
from dfmsd.types import Target

needs_mmdet = pytest.mark.skipif(
    find_spec("mmdet") is None, reason="needs pip install 'dfmsd[mmdet]' (make test-mmdet)"
)
NEEDED = [pytest.mark.mmdet, needs_mmdet]
"""Marks of files that test the library's models."""
CLASSES = ("square", "disc")
SIZES = [(96, 64), (70, 50)]
TARGETS: list[Target] = [
    {"boxes": torch.tensor([[8.0, 16.0, 40.0, 64.0], [0.0, 0.0, 32.0, 24.0]]), "labels": torch.tensor([1, 0])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
]
SHIPPED = {
    "retinanet": "retinanet/retinanet_r18_fpn_1x_coco.py",
    "retinanet_caffe": "retinanet/retinanet_r50-caffe_fpn_1x_coco.py",
    "retinanet_swin": "swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py",
    "fcos": "fcos/fcos_r18_fpn_gn-head-center-normbbox-centeronreg-giou_8xb8-amp-lsj-200e_coco.py",
    "gfl": "gfl/gfl_r50_fpn_1x_coco.py",
    "reppoints": "reppoints/reppoints-moment_r50_fpn-gn_head-gn_1x_coco.py",
    "atss": "atss/atss_r18_fpn_8xb8-amp-lsj-200e_coco.py",
    "faster_rcnn": "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    "faster_rcnn_dcn": "dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py",
    "cascade_mask_rcnn": "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py",
}
"""Of each family, and of what else differs: caffe's pixels, a transformer, deformable convolutions, masks."""
FAMILIES = list(SHIPPED)
WIDTH = 64
"""Of necks and heads: two channels in each of the 32 groups that are normalised together."""
SMALLER: dict[str, dict[Any, Any]] = {
    **{key: {256: WIDTH} for key in ("in_channels", "out_channels", "feat_channels", "point_feat_channels")},
    "conv_out_channels": {256: WIDTH},
    "fc_out_channels": {1024: 64},
    "stacked_convs": {4: 1, 3: 1},
    "score_thr": {0.05: 0.001},  # what random heads predict is worth little
}
"""Key -> value of a shipped config -> that of a tiny one."""
SWIN = {"embed_dims": 16, "depths": [1] * 4, "num_heads": [1, 1, 2, 2], "window_size": 4, "drop_path_rate": 0.0}
SWIN_CHANNELS = [32, 64, 128]
RESNET_CHANNELS = [8, 16, 32, 64]
BOTTLENECK = 4


class Files(NamedTuple):
    """A model as the library keeps it."""

    config: Path
    checkpoint: Path

    @property
    def reference(self) -> str:
        return f"mmdet:{self.config},{self.checkpoint}"


Saved = Callable[[str], Files]


def save_model(family: str, folder: Path) -> Files:
    """Save a tiny model of a shipped config, as trained for `CLASSES`, masks included."""
    folder.mkdir(parents=True)
    files = Files(folder / "config.py", folder / "epoch_1.pth")
    save_config(family, files.config)
    config = import_module("mmengine.config").Config.fromfile(files.config)
    torch.manual_seed(5)
    with import_module("mmengine.registry").DefaultScope.overwrite_default_scope("mmdet"):
        model = import_module("mmdet.registry").MODELS.build(config.model)
    for name, parameter in model.named_parameters():
        if "norm" not in name and "bn" not in name and parameter.ndim == 4 and "backbone" not in name:
            torch.nn.init.normal_(parameter, std=0.05)
    torch.save({"meta": {"dataset_meta": {"classes": CLASSES}}, "state_dict": model.state_dict()}, files.checkpoint)
    return files


def save_config(family: str, path: Path, changes: dict[str, Any] | None = None) -> None:
    """Write the tiny config of a family, with changes such as ``{"model.backbone.depth": 18}``."""
    import_mmdet("a test")
    root = Path(str(import_module("mmdet").__file__)).parent / ".mim" / "configs"
    config = import_module("mmengine.config").Config.fromfile(root / SHIPPED[family])
    config.model = _shrink(config.model.to_dict())
    backbone = config.model.backbone
    if backbone.type == "SwinTransformer":
        backbone.update(SWIN)
        channels = SWIN_CHANNELS
    else:
        backbone.base_channels = RESNET_CHANNELS[0]
        backbone.depth = 50 if "dcn" in backbone else 18
        channels = [BOTTLENECK * number for number in RESNET_CHANNELS] if backbone.depth == 50 else RESNET_CHANNELS
    config.model.neck.in_channels = channels
    config.merge_from_dict(changes or {})
    _set_classes(config.model)
    config.dump(path)


def student(files: Files, pretrained: bool | str = False, classes: tuple[str, ...] = CLASSES) -> Any:
    torch.manual_seed(0)
    return build_detector(DetectorConfig(files.reference, pretrained=pretrained), classes)


def _shrink(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _shrink(part, name) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_shrink(part) for part in value)
    return SMALLER.get(key, {}).get(value, value)


def _set_classes(model: Any) -> None:
    """Let every head know as many classes as `CLASSES`."""
    regions = model.get("roi_head", {})
    for found in (model.get("bbox_head"), regions.get("bbox_head"), regions.get("mask_head")):
        for head in found if isinstance(found, list) else [found]:
            if head is not None:
                head.num_classes = len(CLASSES)
