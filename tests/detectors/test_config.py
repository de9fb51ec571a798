"""DetectorConfig: impossible values are refused at construction, in Python as in YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfmsd.detectors import DetectorConfig
from dfmsd.errors import DfmsdError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"arch": "yolo"}, "unknown arch 'yolo': expected one of fcos, retinanet, gfl, faster_rcnn"),
        (
            {"arch": "timm:resnet18"},
            "unknown arch 'timm:resnet18': .*hf:<folder or id> or mmdet:<config>,",
        ),
        ({"arch": "faster-rcnn"}, r"unknown arch 'faster-rcnn': did you mean faster_rcnn\?"),
        ({"arch": "RetinaNet"}, r"unknown arch 'RetinaNet': did you mean retinanet\?"),
        ({"arch": "fcos_resnet5_fpn"}, r"unknown arch .* did you mean fcos_resnet50_fpn\?"),
        ({"arch": None}, "arch must be the name of an architecture, got None"),
        ({"backbone": ""}, "backbone must be the name of a model, got ''"),
        ({"fpn_channels": -1}, "fpn_channels must be an integer of at least 1, got -1"),
        ({"fpn_channels": 0}, "fpn_channels must be an integer of at least 1, got 0"),
        ({"fpn_channels": 16.0}, r"fpn_channels must be an integer of at least 1, got 16\.0"),
        ({"fpn_channels": True}, "fpn_channels must be an integer of at least 1, got True"),
        ({"fpn_channels": np.int64(0)}, "fpn_channels must be an integer of at least 1, got 0"),
        ({"head_convs": -1}, "head_convs must be an integer of at least 1, got -1"),
        ({"pretrained": None}, "pretrained must be true, false or a path, got None"),
        ({"pretrained": ""}, "pretrained must be true, false or a path, got ''"),
        ({"frozen_stride": -1}, "frozen_stride must be 0 or a stride such as 4, got -1"),
        ({"anchor_scale": 0.0}, r"anchor_scale must be a number above 0, got 0\.0"),
        ({"anchor_scale": float("nan")}, "anchor_scale must be a number above 0, got nan"),
        ({"anchor_scale": float("inf")}, "anchor_scale must be a number above 0, got inf"),
        ({"arch": "ssdlite", "fpn_channels": 1}, "fpn_channels must be an integer of at least 2 for ssdlite, got 1"),
        ({"arch": "ssdlite", "anchor_scale": 19.0}, "anchor_scale must be a number above 0 and below 19 for ssdlite"),
        (
            {"arch": "ssd300_vgg16", "backbone": "resnet18", "fpn_channels": 32},
            "^backbone, fpn_channels: ssd300_vgg16",
        ),
        (
            {"arch": "hf:some/model", "fpn_channels": 32, "head_convs": 1},
            r"^fpn_channels, head_convs: hf:\S+ brings",
        ),
        (
            {"arch": "mmdet:a.py,b.pth", "fpn_channels": 32},
            r"^fpn_channels: mmdet:\S+ brings its own backbone and heads",
        ),
    ],
)
def test_impossible_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DfmsdError, match=message):
        DetectorConfig(**values)


def test_a_path_of_weights_becomes_a_string() -> None:
    assert DetectorConfig(pretrained=Path("weights.pth")).pretrained == "weights.pth"  # type: ignore[arg-type]
