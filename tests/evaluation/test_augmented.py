from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
import torch
from tests.helpers.prepared import FakeDetector

from dfmsd.data import CocoDataModule, DataConfig
from dfmsd.evaluation.augmented import augmented_ap
from dfmsd.evaluation.evaluate import evaluate
from dfmsd.types import Batch, Detections, Target


def oracle(batches: Iterable[Batch], class_names: Sequence[str], missed: int = 0) -> FakeDetector:
    """Return a detector that knows the objects of batches, without the first ``missed`` of each image."""
    targets = [target for batch in batches for target in batch.targets]
    kept = [(target["boxes"][missed:], target["labels"][missed:]) for target in targets]
    answers = [Detections(boxes=boxes, labels=labels, scores=torch.ones(len(labels))) for boxes, labels in kept]
    return FakeDetector(class_names, answers)


@pytest.fixture
def strong(tiny_coco: Path) -> CocoDataModule:
    return CocoDataModule(DataConfig(root=str(tiny_coco), image_size=64, batch_size=3, augment="strong"))


def test_objects_are_looked_for_where_the_augmentation_has_moved_them(strong: CocoDataModule) -> None:
    loader = strong.augmented_val_dataloader()
    assert augmented_ap(oracle(loader, strong.class_names), loader, strong.class_names) == 1
    plain = oracle(strong.val_dataloader(), strong.class_names)
    moved = augmented_ap(plain, loader, strong.class_names)
    assert moved is not None
    assert moved < 0.5


def test_missed_objects_and_unknown_classes_cost_precision(strong: CocoDataModule) -> None:
    loader = strong.augmented_val_dataloader()
    blind = augmented_ap(oracle(loader, strong.class_names, missed=1), loader, strong.class_names)
    assert blind is not None
    assert blind < 1
    others = [f"{name} of another kind" for name in strong.class_names]
    assert augmented_ap(oracle(loader, others), loader, strong.class_names) == 0


def test_without_augmentation_it_is_the_ap_of_the_evaluation(tiny_coco: Path) -> None:
    data = CocoDataModule(DataConfig(root=str(tiny_coco), image_size=64, batch_size=3, augment="none"))
    first, second = (oracle(data.val_dataloader(), data.class_names, missed=1) for _ in range(2))
    found = augmented_ap(first, data.augmented_val_dataloader(), data.class_names)
    assert found == pytest.approx(evaluate(second, data.val_dataloader())["AP"], abs=1e-9)


def test_images_without_objects_have_no_ap(strong: CocoDataModule) -> None:
    batch = next(iter(strong.augmented_val_dataloader(1)))
    empty = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    batch = batch._replace(targets=[empty])
    assert augmented_ap(oracle([batch], strong.class_names), [batch], strong.class_names) is None


def test_as_many_images_are_taken_as_asked_for(strong: CocoDataModule) -> None:
    assert [len(batch.images) for batch in strong.augmented_val_dataloader(1)] == [1]
    assert sum(len(batch.images) for batch in strong.augmented_val_dataloader(10**6)) == len(strong.val)
