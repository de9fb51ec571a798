from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dfmsd.data import CocoDataModule, DataConfig
from dfmsd.data.transforms import Sample
from dfmsd.detectors.base import Detector
from dfmsd.evaluation.augmented import augmented_ap
from dfmsd.evaluation.evaluate import evaluate
from dfmsd.types import Batch, Detections, FeaturePyramid, Target

Loader = DataLoader[Sample]


class Oracle(Detector):
    """Knows the objects of batches in advance, without the first ``missed`` of each image."""

    levels = ()

    def __init__(self, loader: Loader, class_names: Sequence[str], missed: int = 0) -> None:
        super().__init__()
        self.class_names = tuple(class_names)
        batches: list[Batch] = list(loader)
        self.answers = [target for batch in batches for target in batch.targets]
        self.missed = missed
        self.anchor = torch.nn.Parameter(torch.zeros(()))

    def features(self, images: Tensor) -> FeaturePyramid:
        return {"p0": images}

    def forward(self, images: Tensor, targets: Sequence[Target]) -> tuple[FeaturePyramid, dict[str, Tensor]]:
        return self.features(images), {}

    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        given, self.answers = self.answers[: len(sizes)], self.answers[len(sizes) :]
        return [
            Detections(
                boxes=target["boxes"][self.missed :],
                labels=target["labels"][self.missed :],
                scores=torch.ones(len(target["boxes"][self.missed :])),
            )
            for target in given
        ]


@pytest.fixture
def strong(tiny_coco: Path) -> CocoDataModule:
    return CocoDataModule(DataConfig(root=str(tiny_coco), image_size=64, batch_size=3, augment="strong"))


def test_objects_are_looked_for_where_the_augmentation_has_moved_them(strong: CocoDataModule) -> None:
    loader = strong.augmented_val_dataloader()
    assert augmented_ap(Oracle(loader, strong.class_names), loader, strong.class_names) == 1
    plain = Oracle(strong.val_dataloader(), strong.class_names)
    moved = augmented_ap(plain, loader, strong.class_names)
    assert moved is not None
    assert moved < 0.5


def test_missed_objects_and_unknown_classes_cost_precision(strong: CocoDataModule) -> None:
    loader = strong.augmented_val_dataloader()
    blind = augmented_ap(Oracle(loader, strong.class_names, missed=1), loader, strong.class_names)
    assert blind is not None
    assert blind < 1
    others = [f"{name} of another kind" for name in strong.class_names]
    assert augmented_ap(Oracle(loader, others), loader, strong.class_names) == 0


def test_without_augmentation_it_is_the_ap_of_the_evaluation(tiny_coco: Path) -> None:
    data = CocoDataModule(DataConfig(root=str(tiny_coco), image_size=64, batch_size=3, augment="none"))
    oracle = Oracle(data.val_dataloader(), data.class_names, missed=1)
    answers = list(oracle.answers)
    found = augmented_ap(oracle, data.augmented_val_dataloader(), data.class_names)
    oracle.answers = answers
    assert found == pytest.approx(evaluate(oracle, data.val_dataloader())["AP"], abs=1e-9)


def test_images_without_objects_have_no_ap(strong: CocoDataModule) -> None:
    batch = next(iter(strong.augmented_val_dataloader(1)))
    empty = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    batch = batch._replace(targets=[empty])
    assert augmented_ap(Oracle([batch], strong.class_names), [batch], strong.class_names) is None  # type: ignore[arg-type]


def test_as_many_images_are_taken_as_asked_for(strong: CocoDataModule) -> None:
    assert [len(batch.images) for batch in strong.augmented_val_dataloader(1)] == [1]
    assert sum(len(batch.images) for batch in strong.augmented_val_dataloader(10**6)) == len(strong.val)
