"""Batching of samples.

The content of an image is always in the top left corner of its padded frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dfmsd.data.config import STRIDE
from dfmsd.data.transforms import Sample
from dfmsd.types import Batch


def collate(samples: Sequence[Sample], image_size: int | None = None) -> Batch:
    """Pad samples with black at the right and the bottom, and stack them.

    Args:
        samples: At least one; unlabeled ones last.
        image_size: Side of the square frame in pixels; by default the largest height and width among the samples,
            rounded up to multiples of 32.
    """
    sizes = [(int(sample.image.shape[-2]), int(sample.image.shape[-1])) for sample in samples]
    height, width = (image_size or -(-max(side) // STRIDE) * STRIDE for side in zip(*sizes, strict=True))
    # uint8 and channels last, as images are decoded: padding is a plain copy, and the batch is converted only once
    shape = (len(samples), 3, height, width)
    frames = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last).zero_()
    for frame, sample, (h, w) in zip(frames, samples, sizes, strict=True):
        frame[:, :h, :w] = sample.image
    return Batch(
        images=frames.float().div_(255),
        targets=[sample.target for sample in samples if sample.labeled],
        sizes=sizes,
        scales=[sample.scale for sample in samples],
        image_ids=[sample.image_id for sample in samples],
        keys=[sample.digest for sample in samples],
    )
