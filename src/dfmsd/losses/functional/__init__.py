"""Distillation losses as pure functions: tensors in, scalars out, no parameters and no state.

Features are ``N x C x H x W``. `dfmsd.losses.build` wraps these functions into modules that pair and align two
pyramids.
"""

from dfmsd.losses.functional.alignment import Alignment, align_distributions
from dfmsd.losses.functional.attention import (
    Attention,
    channel_attention,
    feature_attention,
    per_magnitude,
    spatial_attention,
)
from dfmsd.losses.functional.basis import procrustes
from dfmsd.losses.functional.dfmsd import dfmsd_alignment, dfmsd_mask
from dfmsd.losses.functional.divergence import cwd
from dfmsd.losses.functional.features import amd, fitnet, mgd, pkd, random_mask
from dfmsd.losses.functional.fgd import fgd_attention, fgd_focal, fgd_relation
from dfmsd.losses.functional.heads import crosskd_cls, crosskd_reg, ld, match_statistics
from dfmsd.losses.functional.masking import enhance_attention, select_mask, stage_ratio, threshold_mask
from dfmsd.losses.functional.objects import object_cells, object_masks
from dfmsd.losses.functional.queries import detrdistill, match_queries
from dfmsd.losses.functional.statistics import channel_statistics, full_precision, pearson, standardize

__all__ = [
    "Alignment",
    "Attention",
    "align_distributions",
    "amd",
    "channel_attention",
    "channel_statistics",
    "crosskd_cls",
    "crosskd_reg",
    "cwd",
    "detrdistill",
    "dfmsd_alignment",
    "dfmsd_mask",
    "enhance_attention",
    "feature_attention",
    "fgd_attention",
    "fgd_focal",
    "fgd_relation",
    "fitnet",
    "full_precision",
    "ld",
    "match_queries",
    "match_statistics",
    "mgd",
    "object_cells",
    "object_masks",
    "pearson",
    "per_magnitude",
    "pkd",
    "procrustes",
    "random_mask",
    "select_mask",
    "spatial_attention",
    "stage_ratio",
    "standardize",
    "threshold_mask",
]
