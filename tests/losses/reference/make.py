"""Write vectors.json: inputs, values and gradients of the released losses, computed by their authors' code.

    python tests/losses/reference/make.py FOLDER

FOLDER contains clones of open-mmlab/mmrazor, yzd-v/FGD, yzd-v/MGD and jbwang1997/CrossKD. Their packages need an old
MMDetection, so this script loads single files and replaces what they import.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor, nn

N, C, H, W, STRIDE = 2, 4, 4, 5, 8
BOXES = [[[3.0, 4.0, 21.0, 17.0], [12.0, 10.0, 38.0, 30.0]], [[17.0, 0.0, 30.0, 9.0]]]


def main() -> None:
    """Load the released code and write the vectors next to this file."""
    folder = Path(sys.argv[1])
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    student, teacher = draw(N, C, H, W), 1.5 * draw(N, C, H, W) + 0.3
    student.requires_grad_()
    cases = {
        **mmrazor_cases(folder / "mmrazor", student, teacher),
        **mgd_case(folder / "MGD", student, teacher),
        **fgd_cases(folder / "FGD", student, teacher),
        **crosskd_cases(folder / "CrossKD", student, teacher),
    }
    sources = {
        path.name: subprocess.check_output(["git", "-C", path, "rev-parse", "HEAD"], text=True).strip()
        for path in sorted(folder.iterdir())
    }
    made = {"command": "python tests/losses/reference/make.py FOLDER", "torch": torch.__version__, "commits": sources}
    features = {"student": student.tolist(), "teacher": teacher.tolist()}
    entries = {"made": made, **features, **cases}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in entries.items())
    Path(__file__).with_name("vectors.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def draw(*shape: int) -> Tensor:
    """Draw normal numbers with three decimals."""
    return torch.randn(*shape).mul(1000).round() / 1000


def case(value: Tensor, source: Tensor, /, **inputs: Any) -> dict[str, Any]:
    """Return the inputs of a loss, its value and its gradient with respect to ``source``."""
    (gradient,) = torch.autograd.grad(value, source)
    plain = {name: item.tolist() if isinstance(item, Tensor) else item for name, item in inputs.items()}
    return {**plain, "value": value.item(), "gradient": gradient.mul(1e12).round().div(1e12).tolist()}


def mmrazor_cases(folder: Path, student: Tensor, teacher: Tensor) -> dict[str, Any]:
    """PKD and CWD."""
    with replaced("mmrazor.registry"):
        pkd = load(folder / "mmrazor/models/losses/pkd_loss.py").PKDLoss()
        cwd = load(folder / "mmrazor/models/losses/cwd.py").ChannelWiseDivergence
    return {
        "pkd": case(pkd(student, teacher), student),
        "cwd": case(cwd(tau=1.0)(student, teacher), student, tau=1.0),
        "cwd, tau 2.5": case(cwd(tau=2.5)(student, teacher), student, tau=2.5),
    }


def mgd_case(folder: Path, student: Tensor, teacher: Tensor) -> dict[str, Any]:
    """MGD, with a mask that is known."""
    with replaced("peer.builder"):
        loss = load(folder / "det/mmdet/distillation/losses/mgd.py", "peer.losses.mgd").FeatureLoss(C, C, "", 1.0, 0.65)
    round_parameters(loss.generation)
    random = torch.rand(N, 1, H, W)
    with mock.patch("torch.rand", return_value=random):
        value = loss(student, teacher)
    mask = torch.where(random > 1 - 0.65, 0.0, 1.0)
    parameters = {name: parameter.tolist() for name, parameter in loss.generation.named_parameters()}
    return {"mgd": case(value, student, mask=mask, generation=parameters)}


def fgd_cases(folder: Path, student: Tensor, teacher: Tensor) -> dict[str, Any]:
    """Each of FGD's terms alone."""
    with replaced("peer.builder", "mmcv.cnn"):
        module = load(folder / "mmdet/distillation/losses/fgd.py", "peer.losses.fgd")
    weights = {"fg": "alpha_fgd", "bg": "beta_fgd", "attention": "gamma_fgd", "relation": "lambda_fgd"}
    cases = {}
    for term in weights:
        torch.manual_seed(1)
        loss = module.FeatureLoss(C, C, "", 0.8, **{key: float(name == term) for name, key in weights.items()})
        round_parameters(loss)
        metas = [{"img_shape": (H * STRIDE, W * STRIDE)}] * N  # without padding, where both scale boxes alike
        value = loss(student, teacher, [torch.tensor(boxes) for boxes in BOXES], metas)
        layers = {name: value.tolist() for name, value in loss.state_dict().items()} if term == "relation" else {}
        cases[f"fgd, {term}"] = case(value, student, tau=0.8, boxes=BOXES, stride=STRIDE, layers=layers)
    return cases


def crosskd_cases(folder: Path, student: Tensor, teacher: Tensor) -> dict[str, Any]:
    """CrossKD's rescaling and both of its terms, and the divergence of LD, which its repository contains."""
    overlaps = load(folder / "mmdet/structures/bbox/bbox_overlaps.py").bbox_overlaps
    with replaced("mmdet.registry", "mmdet.structures.bbox", "mmdet.structures", "mmdet.utils", "peer.utils"):
        sys.modules["mmdet.structures.bbox"].bbox_overlaps = overlaps  # type: ignore[attr-defined]
        with replaced("peer.losses.utils"):
            sys.modules["peer.losses.utils"] = load(folder / "mmdet/models/losses/utils.py", "peer.losses.utils")
            kd = load(folder / "mmdet/models/losses/kd_loss.py", "peer.losses.kd_loss")
            iou = load(folder / "mmdet/models/losses/iou_loss.py", "peer.losses.iou_loss")
        with replaced("peer.detectors.crosskd_single_stage"):
            sys.modules["peer.detectors.crosskd_single_stage"].CrossKDSingleStageDetector = object  # type: ignore[attr-defined]
            module = load(folder / "mmdet/models/detectors/crosskd_retinanet.py", "peer.detectors.crosskd_retinanet")
    upstream = draw(N, C, H, W)
    rescaled = module.CrossKDRetinaNet.align_scale(None, student, teacher)
    logits, target = (2 * draw(7, 3)).requires_grad_(), 2 * draw(7, 3)
    valid = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    corners = draw(7, 2) * 5 + 20
    boxes = torch.cat([corners, corners + 6 + draw(7, 2).abs()], dim=1).requires_grad_()
    boxes_t = torch.cat([corners - draw(7, 2).abs(), corners + 5 + draw(7, 2).abs()], dim=1)
    weight = draw(7).abs()
    sides, sides_t = draw(7, 17).requires_grad_(), 2 * draw(7, 17)
    focal = kd.KDQualityFocalLoss(beta=1, reduction="sum")(logits, target, valid)
    divergence = kd.KnowledgeDistillationKLDivLoss(reduction="sum", T=10)(sides, sides_t, weight)
    cases = {
        "crosskd, rescaling": case((rescaled * upstream).sum(), student, upstream=upstream, rescaled=rescaled),
        "crosskd, cls": case(focal, logits, logits=logits, teacher=target, valid=valid),
        "ld": case(divergence, sides, student=sides, teacher=sides_t, weight=weight, temperature=10.0),
    }
    for name, loss in (("giou", iou.GIoULoss(reduction="sum")), ("iou", iou.IoULoss(reduction="sum"))):
        value = loss(boxes, boxes_t, weight)
        cases[f"crosskd, reg, {name}"] = case(value, boxes, boxes=boxes, teacher=boxes_t, weight=weight)
    return cases


def round_parameters(module: nn.Module) -> None:
    """Draw parameters anew, also those that start at 0."""
    for parameter in module.parameters():
        parameter.data = (draw(*parameter.shape) / 2).mul(1000).round() / 1000


@contextmanager
def replaced(*names: str) -> Iterator[None]:
    """Provide modules of these names that register nothing and initialize nothing."""
    with mock.patch.dict(sys.modules):
        for name in names:
            for depth in range(1, name.count(".") + 2):
                part = ".".join(name.split(".")[:depth])
                sys.modules.setdefault(part, Replacement(part))
        yield


class Replacement(ModuleType):
    """A package in which every name is a registry, and a function that does nothing."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        def nothing(*_: Any, **__: Any) -> None:
            """Do nothing."""

        def unchanged() -> Callable[[Any], Any]:
            return lambda decorated: decorated

        nothing.register_module = unchanged  # type: ignore[attr-defined]
        return nothing if not name.startswith("__") else SimpleNamespace()


def load(path: Path, name: str = "peer") -> Any:
    """Execute one file as a module."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
