"""Properties of annotation files, boxes and transforms; for those of level tables see test_align.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fuzz.target import TRUTH, changed, check, make_root

from dfmsd.data.augmentation import Augmentation
from dfmsd.data.transforms import Sample, fit, fitted_size, hflip
from dfmsd.types import Target

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

WORDS = st.sampled_from(["0.png", "deep", "deep/1.png", "../val", "/", ".", "", "disc", "a\0", "id", "\ud800"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | WORDS
VALUES = st.recursive(
    SCALARS | st.integers(-(10**400), 10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3) | WORDS, inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("data"))


def test_the_valid_file_is_read(root: Path) -> None:
    assert check(json.dumps(TRUTH).encode(), root) is not None


@FEW
@given(data=st.data(), value=VALUES)
def test_one_wrong_value_is_harmless_or_refused(root: Path, data: st.DataObject, value: Any) -> None:
    check(changed(lambda limit: data.draw(st.integers(0, limit - 1)), value), root)


@FEW
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
def test_any_bytes_are_refused(root: Path, content: bytes) -> None:
    assert check(content, root) is None


SIDE = st.integers(1, 70)
NUMBER = st.floats(-1e9, 1e9, allow_nan=False) | st.integers(-(10**9), 10**9)


@FEW
@given(boxes=st.lists(st.tuples(NUMBER, NUMBER, NUMBER, NUMBER), max_size=4))
def test_finite_boxes_are_clipped_to_the_image(root: Path, boxes: list[tuple[float, ...]]) -> None:
    entries = [{"id": i, "image_id": 1, "category_id": 1, "bbox": list(box)} for i, box in enumerate(boxes)]
    assert check(json.dumps({**TRUTH, "annotations": entries}).encode(), root) is not None


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    height, width = draw(SIDE), draw(SIDE)
    corners = [
        sorted((draw(st.floats(0, side, width=32)), draw(st.floats(0, side, width=32)))) for side in (width, height)
    ]
    (x0, x1), (y0, y1) = corners
    boxes = torch.tensor([[x0, y0, x1, y1]])
    image = torch.full((3, height, width), 7, dtype=torch.uint8)
    return Sample(image, Target(boxes=boxes, labels=torch.zeros(1, dtype=torch.int64)), (1.0, 1.0), 1)


@FEW
@given(sample=samples(), size=st.sampled_from([32, 64, 96]))
def test_resizing_keeps_aspect_and_boxes_inside(sample: Sample, size: int) -> None:
    height, width = sample.image.shape[-2:]
    fitted = fit(sample.image, sample.target, size)
    new = tuple(fitted.image.shape[-2:])
    assert new == fitted_size(height, width, size)
    assert max(new) == size
    assert min(new) == max(1, round(min(height, width) * size / max(height, width)))
    limit = torch.tensor([new[1], new[0]] * 2)
    box = fitted.target["boxes"][0]
    assert bool((box >= 0).all() and (box <= limit * (1 + 1e-6)).all())
    assert torch.allclose(box / limit, sample.target["boxes"][0] / torch.tensor([width, height] * 2), atol=1e-5)


@FEW
@given(sample=samples())
def test_two_flips_restore_the_sample(sample: Sample) -> None:
    again = hflip(hflip(sample))
    assert torch.equal(again.image, sample.image)
    assert torch.allclose(again.target["boxes"], sample.target["boxes"], atol=1e-4)


@FEW
@given(sample=samples(), seed=st.integers(0, 99))
def test_random_scales_leave_boxes_in_the_frame_with_their_labels(sample: Sample, seed: int) -> None:
    out = Augmentation(64, scale_jitter=(0.3, 3.0))(fit(sample.image, sample.target, 64), np.random.default_rng(seed))
    height, width = out.image.shape[-2:]
    boxes = out.target["boxes"]
    assert max(height, width) <= 64
    assert len(boxes) == len(out.target["labels"])
    assert bool((boxes >= 0).all() and (boxes <= torch.tensor([width, height] * 2)).all())
    assert bool((boxes[:, 2:] - boxes[:, :2] >= 1).all())
