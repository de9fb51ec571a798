from __future__ import annotations

from pathlib import Path

import torch

from dfmsd.data import Augmentation, DetectionDataset, open_split


def build(root: Path, pool: int | None, *, digest: bool = True) -> DetectionDataset:
    augment = Augmentation(64, scale_jitter=(0.5, 1.5), photometric=0.5, mosaic=0.5)
    return DetectionDataset(open_split(root, "train"), 64, augment, digest=digest, pool=pool)


def test_the_versions_of_a_pool_come_back_in_turn_with_their_digests(tiny_coco: Path) -> None:
    data = build(tiny_coco, pool=3)
    versions = [data[epoch, 0] for epoch in range(6)]
    for first, again in zip(versions[:3], versions[3:], strict=True):
        assert torch.equal(first.image, again.image)
        assert torch.equal(first.target["boxes"], again.target["boxes"])
    digests = [sample.digest for sample in versions]
    assert digests[:3] == digests[3:]
    assert len(set(digests)) == 3
    assert None not in digests


def test_without_a_pool_images_are_new_and_have_no_digest(tiny_coco: Path) -> None:
    data = build(tiny_coco, pool=None)
    assert data[3, 0].digest is None
    assert not torch.equal(data[0, 0].image.float().mean(), data[3, 0].image.float().mean())


def test_digests_are_not_computed_unasked(tiny_coco: Path) -> None:
    assert build(tiny_coco, pool=3, digest=False)[0, 0].digest is None
