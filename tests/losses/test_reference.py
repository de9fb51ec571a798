"""Compares the losses with vectors that their authors' released code computed, see ``reference/make.py``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from dfmsd.losses import functional
from dfmsd.losses.fgd import GlobalContext
from dfmsd.losses.functional import feature_attention, object_masks
from dfmsd.losses.generation import GenerationBlock

VECTORS = json.loads((Path(__file__).parent / "reference" / "vectors.json").read_text(encoding="utf-8"))
EPS = 1e-6
"""Of the official code of PKD and CrossKD."""


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


TEACHER = tensor(VECTORS["teacher"])


def check(name: str, loss: Callable[[Tensor, dict[str, Any]], Tensor], student: str | None = None) -> None:
    """Compare value and gradient with those of a case, whose student is a key of its own or the shared feature."""
    case = VECTORS[name]
    source = tensor(VECTORS["student"] if student is None else case[student]).requires_grad_()
    value = loss(source, case)
    assert_close(value, tensor(case["value"]), rtol=1e-8, atol=1e-10)
    assert_close(torch.autograd.grad(value, source)[0], tensor(case["gradient"]), rtol=1e-7, atol=1e-10)


def test_pkd_equals_mmrazors() -> None:
    check("pkd", lambda student, _: functional.pkd(student, TEACHER, EPS))


@pytest.mark.parametrize("name", ["cwd", "cwd, tau 2.5"])
def test_cwd_equals_mmrazors(name: str) -> None:
    check(name, lambda student, case: functional.cwd(student, TEACHER, case["tau"]))


def test_mgd_equals_the_official_code() -> None:
    def loss(student: Tensor, case: dict[str, Any]) -> Tensor:
        generation = GenerationBlock(TEACHER.shape[1]).double()
        generation.load_state_dict({key: tensor(value) for key, value in case["generation"].items()})
        return functional.mgd(student, TEACHER, tensor(case["mask"]), generation)

    check("mgd", loss)


@pytest.mark.parametrize("place", [0, 1], ids=["fg", "bg"])
def test_fgds_focal_terms_equal_the_official_code(place: int) -> None:
    def loss(student: Tensor, case: dict[str, Any]) -> Tensor:
        boxes, size = [tensor(boxes) for boxes in case["boxes"]], (TEACHER.shape[2], TEACHER.shape[3])
        masks = object_masks(boxes, case["stride"], size, torch.float64)
        return functional.fgd_focal(student, TEACHER, feature_attention(TEACHER, case["tau"]), *masks)[place]

    check(f"fgd, {('fg', 'bg')[place]}", loss)


def test_fgds_attention_equals_the_official_code() -> None:
    def loss(student: Tensor, case: dict[str, Any]) -> Tensor:
        return functional.fgd_attention(*(feature_attention(feature, case["tau"]) for feature in (student, TEACHER)))

    check("fgd, attention", loss)


def test_fgds_relation_equals_the_official_code() -> None:
    def context(layers: dict[str, Any], side: str, feature: Tensor) -> Tensor:
        """Load our block with the parameters of one side, except the bias that a softmax cancels."""
        block = GlobalContext(feature.shape[1]).double()
        names = {f"conv_mask_{side}.": "attend.", f"channel_add_conv_{side}.": "transform."}
        block.load_state_dict(
            {
                key.replace(theirs, ours): tensor(value)
                for key, value in layers.items()
                for theirs, ours in names.items()
                if key.startswith(theirs) and key != f"conv_mask_{side}.bias"
            }
        )
        result: Tensor = block(feature)
        return result

    def loss(student: Tensor, case: dict[str, Any]) -> Tensor:
        contexts = context(case["layers"], "s", student), context(case["layers"], "t", TEACHER)
        return functional.fgd_relation(student, TEACHER, *contexts)

    check("fgd, relation", loss)


def test_crosskds_rescaling_equals_the_official_code() -> None:
    def loss(student: Tensor, case: dict[str, Any]) -> Tensor:
        rescaled = functional.match_statistics(student, TEACHER, EPS)
        assert_close(rescaled.detach(), tensor(case["rescaled"]))
        return (rescaled * tensor(case["upstream"])).sum()

    check("crosskd, rescaling", loss)


def test_crosskds_classification_equals_the_official_code() -> None:
    def loss(logits: Tensor, case: dict[str, Any]) -> Tensor:
        valid = tensor(case["valid"]).bool()
        return functional.crosskd_cls(logits[None], tensor(case["teacher"])[None], valid[None])

    check("crosskd, cls", loss, "logits")


@pytest.mark.parametrize("kind", ["giou", "iou"])
def test_crosskds_regression_equals_the_official_code(kind: str) -> None:
    def loss(boxes: Tensor, case: dict[str, Any]) -> Tensor:
        teacher, weight = tensor(case["teacher"]), tensor(case["weight"])
        return functional.crosskd_reg(boxes, teacher, weight, generalized=kind == "giou")

    check(f"crosskd, reg, {kind}", loss, "boxes")


def test_ld_equals_the_official_code() -> None:
    check("ld", lambda s, case: functional.ld(s, tensor(case["teacher"]), tensor(case["weight"]), 10.0), "student")


def test_the_vectors_name_their_origin() -> None:
    made = VECTORS["made"]
    assert made["command"] == "python tests/losses/reference/make.py FOLDER"
    assert sorted(made["commits"]) == ["CrossKD", "FGD", "MGD", "mmrazor"]
