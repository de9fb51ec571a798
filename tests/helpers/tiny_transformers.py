"""Tiny random detectors of Hugging Face transformers, which is imported where it is used: not all machines have it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dfmsd.detectors import DetectorConfig, build_detector
from dfmsd.detectors.huggingface.families import FAMILIES
from dfmsd.types import LevelSpec, Target

needs_transformers = pytest.mark.skipif(
    find_spec("transformers") is None, reason="needs pip install 'dfmsd[transformers]'"
)
NEEDED = [pytest.mark.transformers, needs_transformers]
"""Marks of files that test the library's models."""
Saved = Callable[[str], Path]
Built = Callable[[str], Any]
SIZES = [(96, 64), (70, 50)]
BACKBONE = {
    "model_type": "rt_detr_resnet",
    "embedding_size": 16,
    "hidden_sizes": [16, 16, 32, 32],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_indices": [2, 3, 4],
}
DECODER = {"decoder_layers": 2, "decoder_ffn_dim": 64, "decoder_attention_heads": 4, "num_queries": 20}
ENCODER = {"encoder_layers": 2, "encoder_ffn_dim": 64, "encoder_attention_heads": 4}
HYBRID = {
    **DECODER,
    **ENCODER,
    "d_model": 64,
    "encoder_hidden_dim": 64,
    "encoder_in_channels": [16, 32, 32],
    "decoder_in_channels": [64, 64, 64],
    "num_denoising": 10,
}
VIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "patch_size": 16, "image_size": 64}
LW_DETR = {
    "decoder_layers": 2,
    "decoder_ffn_dim": 64,
    "decoder_self_attention_heads": 4,
    "decoder_cross_attention_heads": 4,
    "num_queries": 16,
    "group_detr": 3,
    "d_model": 64,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "deformable_detr": {**DECODER, **ENCODER, "d_model": 64},
    "dab-detr": {**DECODER, **ENCODER, "hidden_size": 64},
    **{name: HYBRID for name in ("rt_detr", "rt_detr_v2", "d_fine", "deimv2")},
    **{name: {**DECODER, **ENCODER, "d_model": 64} for name in ("detr", "table-transformer", "conditional_detr")},
    "lw_detr": {
        **LW_DETR,
        "projector_scale_factors": [2.0, 0.5],
        # two windows a side, and a layer behind the last map, as in the published models
        "backbone_config": {
            **VIT,
            "model_type": "lw_detr_vit",
            "num_windows": 4,
            "pretrain_image_size": 64,
            "window_block_indices": [0, 2],
            "out_indices": [1, 3],
        },
    },
    "rf_detr": {
        **LW_DETR,
        "dropout": 0.0,
        "backbone_config": {**VIT, "model_type": "rf_detr_dinov2", "num_windows": 2, "out_indices": [1, 3]},
    },
    "yolos": {**VIT, "intermediate_size": 64, "num_detection_tokens": 20, "image_size": [64, 96]},
}
STUDENTS = ("rt_detr", "rt_detr_v2", "d_fine", "deimv2", "lw_detr", "rf_detr", "deformable_detr")
SQUARE = ("rf_detr",)
"""Families that take squares only."""
CLASSES = ("square", "disc")
PYRAMID = tuple(LevelSpec(f"p{n}", 64, 2**n) for n in (3, 4, 5))
LEVELS = {
    "lw_detr": (PYRAMID[0], PYRAMID[2]),
    "rf_detr": (PYRAMID[1],),
    "deformable_detr": (*PYRAMID, LevelSpec("p6", 64, 64)),
}
"""Levels of the students that do not have those of `PYRAMID`."""
TARGETS: list[Target] = [
    {"boxes": torch.tensor([[8.0, 16.0, 40.0, 64.0], [0.0, 0.0, 32.0, 24.0]]), "labels": torch.tensor([1, 0])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
]


def save_model(model_type: str, folder: Path, **changes: Any) -> None:
    """Save a random model of a type as the library does, with an unused class beside `CLASSES`.

    Args:
        model_type: the type.
        folder: where to save it.
        changes: options in place of those of `OPTIONS`.
    """
    hf = import_module("transformers")
    torch.manual_seed(5)
    names = dict(enumerate(("N/A", *CLASSES)))
    options = {**({} if model_type == "yolos" else {"backbone_config": BACKBONE}), **OPTIONS[model_type], **changes}
    config = hf.AutoConfig.for_model(
        model_type,
        id2label=names,
        label2id={name: label for label, name in names.items()},
        **copy.deepcopy(options),
    )
    model = hf.AutoModelForObjectDetection.from_config(config)
    for name, parameter in model.named_parameters():  # scores on both sides of the threshold
        if "class" in name and parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    processor(model_type).save_pretrained(folder)


def processor(model_type: str) -> Any:
    return getattr(import_module("transformers"), FAMILIES[model_type].processor)()


def student(folder: Path, pretrained: bool = True, classes: tuple[str, ...] = CLASSES) -> Any:
    torch.manual_seed(0)
    return build_detector(DetectorConfig(f"hf:{folder}", pretrained=pretrained), classes)
