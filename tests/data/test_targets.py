from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dfmsd.data.augmentation import Augmentation
from dfmsd.data.batching import collate
from dfmsd.data.multiscale import resize_batch
from dfmsd.data.targets import joined, kept, scores_of
from dfmsd.data.transforms import fit
from dfmsd.data.unlabeled import unlabeled_records, with_boxes
from dfmsd.types import Target

BOXES = torch.tensor([[0.0, 0, 8, 8], [40, 40, 60, 60], [20, 4, 36, 20]])


def target(*scores: float) -> Target:
    count = len(scores) or 3
    plain = Target(boxes=BOXES[:count], labels=torch.arange(count))
    return {**plain, "scores": torch.tensor(scores)} if scores else plain


def test_scores_are_kept_with_their_boxes() -> None:
    part = kept(target(0.1, 0.2, 0.3), torch.tensor([True, False, True]))
    assert part["labels"].tolist() == [0, 2]
    assert torch.equal(part["scores"], torch.tensor([0.1, 0.3]))
    assert "scores" not in kept(target(), torch.tensor([True, False, True]))


def test_objects_without_scores_count_as_sure() -> None:
    whole = joined([target(0.5), target()])
    assert whole["scores"].tolist() == [0.5, 1, 1, 1]
    assert len(whole["boxes"]) == len(whole["labels"]) == 4
    assert "scores" not in joined([target(), target()])
    assert scores_of(target()).tolist() == [1, 1, 1]


def test_scores_stay_with_their_boxes_through_all_augmentations() -> None:
    """A box keeps the label that was given with its score: label i has score i / 10."""
    own = target(0.0, 0.1, 0.2)
    everything = {"zoom_out": 0.5, "iou_crop": 0.5, "mosaic": 0.5, "mixup": 0.5, "photometric": 0.5}
    augmentation = Augmentation(64, scale_jitter=(0.5, 1.5), **everything)
    sample = fit(torch.zeros(3, 64, 64, dtype=torch.uint8), own, 64)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        changed = augmentation(sample, rng, 0, lambda count: [sample] * count)
        found = changed.target
        assert len(found["boxes"]) == len(found["labels"])
        torch.testing.assert_close(found["scores"], found["labels"] / 10)
        batch = resize_batch(collate([changed], 64), 0.5).to("cpu")
        assert torch.equal(batch.targets[0]["scores"], found["scores"])


def test_soft_pseudo_labels_have_the_scores_of_the_file(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    boxes = [{"image_id": 1, "category_id": 3, "bbox": [70, 0, 5, 5], "score": 0.5}]  # beyond the image
    boxes.append({"image_id": 1, "category_id": 3, "bbox": [0, 0, 5, 5], "score": 0.75})
    content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": boxes}
    records = unlabeled_records(tmp_path)
    (soft,), (hard,) = (with_boxes(records, content, tmp_path, (3,), soft=one) for one in (True, False))
    assert soft.target["scores"].tolist() == [0.75]
    assert "scores" not in hard.target
