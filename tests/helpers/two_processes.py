"""Two processes that compute together, and what they compute in the tests of `dfmsd.utils.distributed`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from dfmsd import losses
from dfmsd.detectors import DetectorConfig, build_detector
from dfmsd.distillation.stages import StageConfig
from dfmsd.distillation.task import DistillationTask
from dfmsd.distillation.teacher import FrozenTeacher
from dfmsd.losses import functional
from dfmsd.losses.basis import PyramidBasis
from dfmsd.types import FeaturePyramid, LevelSpec, Target
from dfmsd.utils.distributed import copy_from_first, shared_step

WORLD = 2
IMAGES = 4
SIDE = 64
LEVELS = (LevelSpec("p3", 8, 8), LevelSpec("p4", 8, 16))
TAUGHT = (LevelSpec("p3", 6, 8), LevelSpec("p4", 6, 16))
BOXES: list[Target] = [
    {"boxes": torch.tensor([[4.0, 8, 40, 44], [20, 20, 60, 50]]), "labels": torch.tensor([0, 1])},
    {"boxes": torch.tensor([[30.0, 2, 62, 30]]), "labels": torch.tensor([1])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)},
]
"""The second process has images without objects only."""
TASKS: dict[str, tuple[str, Any, float | None]] = {
    "dfmsd": ("retinanet", {"name": "dfmsd"}, None),
    "dfmsd, balanced": ("retinanet", {"name": "dfmsd"}, 0.5),
    "pkd and crosskd": ("retinanet", [{"name": "pkd"}, {"name": "crosskd"}], None),
    "crosskd of fcos": ("fcos", {"name": "crosskd"}, None),
    "ld": ("gfl", {"name": "ld"}, None),
}
"""Detector, loss and balance."""
COUNTING = ("fcos", "gfl")
"""Detectors whose own loss counts the objects of a process's batch: of them the distillation alone is compared.

They compute in float32.
"""


def together(function: Callable[[int], Any], folder: Path) -> list[Any]:
    """Call a function in two processes that know each other, and give what each returns."""
    # a fork has imported everything already, which takes longer than all that is computed; CUDA survives none
    method = "fork" if sys.platform == "linux" and not torch.cuda.is_available() else "spawn"
    torch.multiprocessing.start_processes(_call, (function, str(folder)), WORLD, start_method=method)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def _call(rank: int, function: Callable[[int], Any], folder: str) -> None:
    torch.set_num_threads(1)
    where, patience = f"file://{folder}/meeting", timedelta(seconds=60)
    dist.init_process_group("gloo", where, rank=rank, world_size=WORLD, timeout=patience)
    torch.save(function(rank), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def part(rank: int | None) -> slice:
    """Images of a process; of all for None."""
    own = IMAGES // WORLD
    return slice(None) if rank is None else slice(rank * own, (rank + 1) * own)


def pyramid(levels: Sequence[LevelSpec], seed: int) -> FeaturePyramid:
    """Features with a scale and a mean that differ between images, float64."""
    generator = torch.Generator().manual_seed(seed)
    scale = 1 + torch.arange(IMAGES).double()[:, None, None, None]
    return {
        level.name: scale
        * (torch.randn(IMAGES, level.channels, *2 * [SIDE // level.stride], generator=generator).double() + scale)
        for level in levels
    }


def loss_gradients(
    name: str, options: dict[str, Any], rank: int | None, *, statistics: bool = True
) -> dict[str, Tensor]:
    """Gradients of a loss on the student's pyramid and on its own layers, and its value."""
    torch.manual_seed(0)
    criterion = losses.build(name, LEVELS, TAUGHT, **options).double()
    student = {key: value[part(rank)].requires_grad_() for key, value in pyramid(LEVELS, 1).items()}
    teacher = {key: value[part(rank)] for key, value in pyramid(TAUGHT, 2).items()}
    boxes = [target["boxes"] for target in BOXES[part(rank)]]
    with shared_step(statistics=statistics):
        terms = criterion(student, teacher, boxes=boxes, size=(SIDE, SIDE), stage=2)
    loss = torch.stack(list(terms.values())).sum()
    loss.backward()
    own = {name: value.grad for name, value in criterion.named_parameters() if value.grad is not None}
    return {"loss": loss.detach(), **{name: value.grad for name, value in student.items()}, **own}


class Whole(nn.Module):
    """The sum of a task's losses, or of its distillation's alone: what is differentiated."""

    def __init__(self, task: DistillationTask, *, own: bool = True) -> None:
        super().__init__()
        self.task = task
        self.own = own

    def forward(self, images: Tensor, targets: list[Target]) -> Tensor:
        with shared_step():
            named = self.task(images, targets)
        return torch.stack([value for name, value in named.items() if self.own or not name.startswith("task/")]).sum()


def build_whole(arch: str, loss: Any, balance: float | None) -> Whole:
    """A whole task with frozen batch normalisation."""
    torch.manual_seed(0)
    config = DetectorConfig(arch, "test_efficientnet", fpn_channels=16, head_convs=2)
    student, teacher = (build_detector(config, ("a", "b")).to(kind(arch)) for _ in range(2))
    task = DistillationTask(student, [StageConfig(1, "t")], [[FrozenTeacher(teacher, "t")]], loss, balance)
    task.to(kind(arch))
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return Whole(task, own=arch not in COUNTING)


def kind(arch: str) -> torch.dtype:
    """Numbers that a detector's losses can be computed in."""
    return torch.float32 if arch in COUNTING else torch.float64


def own_batch(rank: int | None, arch: str = "retinanet") -> tuple[Tensor, list[Target]]:
    """Images of a process and their objects."""
    images = torch.rand(IMAGES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3)).to(kind(arch))
    targets: list[Target] = [{**target, "boxes": target["boxes"].to(kind(arch))} for target in BOXES]
    return images[part(rank)], targets[part(rank)]


def task_gradients(arch: str, loss: Any, balance: float | None, rank: int | None) -> dict[str, Tensor]:
    """Gradients of a step of a whole task; DDP takes their mean over processes."""
    whole = build_whole(arch, loss, balance)
    step = whole if rank is None else DistributedDataParallel(whole, find_unused_parameters=True)
    step(*own_batch(rank, arch)).backward()
    gradients = {name: value.grad for name, value in whole.named_parameters() if value.grad is not None}
    if balance is not None:
        gradients["factor"] = whole.task.lessons[0].balance.factor
    return gradients


def sharded_step(rank: int | None) -> dict[str, Tensor]:
    """Weights after a step of gradient descent, each process holding a part of them (FSDP2)."""
    whole = build_whole("retinanet", {"name": "dfmsd"}, None)
    if rank is not None:
        fully_shard(whole, mesh=init_device_mesh("cpu", (WORLD,)))
    parameters = dict(whole.named_parameters())
    whole(*own_batch(rank)).backward()
    torch.optim.SGD(parameters.values(), lr=0.1).step()
    held = sum((value.to_local() if isinstance(value, DTensor) else value).numel() for value in parameters.values())
    after = {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in parameters.items()}
    return {"held": torch.tensor(held), **{name: value.detach() for name, value in after.items()}}


def unlike_frames(rank: int | None) -> dict[str, Tensor]:
    """Alignment where one process has a larger frame than the other; alone, of all values in a row."""
    generator = torch.Generator().manual_seed(4)
    sizes = ((4, 4), (3, 2))
    student, teacher = ([torch.randn(1, 5, *size, generator=generator).double() for size in sizes] for _ in range(2))
    if rank is None:
        own = [torch.cat([value.flatten(2) for value in one], dim=2).unsqueeze(2) for one in (student, teacher)]
    else:
        own = [one[rank] for one in (student, teacher)]
    own[0].requires_grad_()
    with shared_step():
        found = functional.align_distributions(own[0], functional.standardize(own[1]))
    found.error.backward()
    assert own[0].grad is not None
    return {"error": found.error.detach(), "correlation": found.correlation, "gradient": own[0].grad.flatten(2)}


def copied_basis(rank: int | None) -> dict[str, Tensor]:
    """A basis that only the first process has fitted."""
    basis = PyramidBasis(TAUGHT, {level.name: level for level in LEVELS})
    if not rank:
        basis.fit_to([torch.zeros(0)], lambda _: pyramid(TAUGHT, 2), lambda _: pyramid(LEVELS, 1))
    copy_from_first(basis)
    return basis.state_dict()


FEATURES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ("amd", "cwd", "dfmsd", "dmkd", "fgd", "fitnet", "pkd")},
    "mgd": ("mgd", {"ratio": 0.0}),  # its masks are drawn by each process
}


def everything(rank: int | None) -> dict[str, dict[str, Tensor]]:
    """All that is compared; None computes it in one process."""
    found = {f"loss: {key}": loss_gradients(*case, rank) for key, case in FEATURES.items()}
    found["each its own: pkd"] = loss_gradients("pkd", {}, rank, statistics=False)
    found |= {f"task: {key}": task_gradients(*case, rank) for key, case in TASKS.items()}
    found["sharded"] = sharded_step(rank)
    found["frames"] = unlike_frames(rank)
    found["copied"] = copied_basis(rank)
    return found
