"""One combination of a teacher's and a student's family, tried with small, random detectors."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
from safetensors.torch import load_file
from tests.helpers.one_box import OneBox, decode, loss
from tests.helpers.tiny_transformers import save_model
from torch import nn

from dfmsd.detectors import Detector, DetectorConfig, ModuleDetector, build_detector, load_detector, save_detector
from dfmsd.detectors.config import OWN_ARCHS
from dfmsd.detectors.huggingface.families import FAMILIES
from dfmsd.distillation.checks import check_optimizer
from dfmsd.distillation.stages import StageConfig
from dfmsd.distillation.task import DistillationTask
from dfmsd.distillation.teacher import FrozenTeacher
from dfmsd.engine.optim import OptimConfig
from dfmsd.engine.optimizer import build_optimizer
from dfmsd.errors import DfmsdError
from dfmsd.types import Target

CLASSES = ("square", "disc")
LOSS = "dfmsd"
STEPS = 2
LR = 1e-5
"""Small, since the first steps of AdamW are as long for the widest layers of random weights as for the others."""
SIDE = 96
SSD_SIDE = 288
"""SSD300's last maps are made without padding: a smaller image leaves them without a cell."""
BOXES = torch.tensor(
    [(48, 48, 8), (24, 24, 20), (48, 48, 34), (72, 72, 48), (31, 31, 62), (48, 48, 62), (48, 48, 77), (48, 48, 91)]
)
"""Objects in an image of `SIDE` pixels, as centre x, centre y and side: one for each level of SSD and of SSDLite, whose
coarse levels have one cell in an image of `SIDE` and four in one of `SSD_SIDE`."""
CLASS_LAYERS = ("cls_logits", "cls_score", "classification_head", "class_embed", "enc_score_head")
SWIN = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 4, "image_size": 64}
DINO = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 16, "image_size": 64}
TORCHVISION = {
    "fcos": "fcos",
    "retinanet": "retinanet",
    "fasterrcnn": "faster_rcnn",
    "maskrcnn": "mask_rcnn",
    "ssd300": "ssd",
    "ssdlite": "ssdlite",
}
"""How the names of torchvision's own models begin -> the family that stands for them."""
Build = Callable[[Path], Detector]


class Row(TypedDict):
    """What became of one combination."""

    teacher: str
    student: str
    passed: bool
    refused: bool
    note: str
    """The refusal's text, or what went wrong."""
    levels: list[str]
    """Which level of the student learns from which of the teacher."""
    frozen: list[str]
    """Parts of the student that do not learn: all their parameters are without gradient on purpose."""


class Student(NamedTuple):
    """How a student is made, and how it comes back from the folder that it was delivered in."""

    build: Build
    load: Callable[[Path], Detector] = load_detector


class ThreeMaps(OneBox):
    """A module of nobody's, with maps of strides 8 to 32."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*self.body, nn.Conv2d(8, 8, 3, 2, 1))


def own(arch: str, channels: int, _: Path) -> Detector:
    config = DetectorConfig(arch, "mobilenetv3_small_050", fpn_channels=channels, head_convs=1)
    return build_detector(config, CLASSES)


def whole(arch: str, _: Path) -> Detector:
    return build_detector(DetectorConfig(arch), CLASSES)


def hugging_face(model_type: str, folder: Path) -> str:
    path = folder / model_type
    if not path.is_dir():
        save_model(model_type, path)
    return f"hf:{path}"


def backbone(model_type: str, options: dict[str, Any], folder: Path) -> Detector:
    library = import_module("transformers")
    torch.manual_seed(2)
    model = library.AutoModelForImageClassification.from_config(library.AutoConfig.for_model(model_type, **options))
    for part in (model, library.ConvNextImageProcessor()):
        part.save_pretrained(folder / model_type)
    return load_detector(f"hf:{folder / model_type}")


def module(_: Path) -> ModuleDetector:
    paths = ("body.2", "body.3", "body.4")
    return ModuleDetector(
        ThreeMaps(), paths, CLASSES, mean=(0.5,) * 3, std=(0.25,) * 3, loss=loss, decode=decode
    ).train()


def load_module(folder: Path) -> Detector:
    detector = module(folder)
    detector.model.load_state_dict(load_file(folder / "student.safetensors"))
    return detector.eval()


TEACHERS: dict[str, Build] = {
    **{arch: partial(own, arch, 32) for arch in OWN_ARCHS},
    "mask_rcnn": partial(whole, "maskrcnn_resnet50_fpn"),
    "ssd": partial(whole, "ssd300_vgg16"),
    **{f"hf: {kind}": lambda folder, kind=kind: load_detector(hugging_face(kind, folder)) for kind in FAMILIES},
    "hf: pyramid": partial(backbone, "swin", SWIN),
    "hf: plain transformer": partial(backbone, "dinov2", DINO),
    "timm: pyramid": lambda _: load_detector("timm:test_resnet", trained=False),
    "timm: plain transformer": lambda _: load_detector("timm:test_vit", trained=False),
    "nn.Module": module,
}
"""Every family that can teach -> a small detector of it."""
STUDENTS: dict[str, Student] = {
    **{arch: Student(partial(own, arch, 16)) for arch in OWN_ARCHS},
    "mask_rcnn": Student(partial(whole, "maskrcnn_resnet50_fpn")),
    "ssd": Student(partial(whole, "ssd300_vgg16")),
    **{
        f"hf: {kind}": Student(
            lambda folder, kind=kind, trained=family.frozen_norms: build_detector(
                DetectorConfig(hugging_face(kind, folder), pretrained=trained), CLASSES
            )
        )
        for kind, family in FAMILIES.items()
        if family.trainable
    },
    "nn.Module": Student(module, load_module),
}
"""Every family that can learn -> a small detector of it."""
LARGE = ("mask_rcnn", "ssd")
"""Students that there are in one size only, whose adapters are those of smaller ones: tried with one teacher each."""
COMBINATIONS = [
    (teacher, student) for teacher, student in product(TEACHERS, STUDENTS) if student not in LARGE or teacher == "fcos"
]


class Workshop:
    """Makes each detector once, in a folder of its own.

    Args:
        folder: for the files of Hugging Face's models.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.teacher = cache(self._teacher)
        self._once = cache(self._student)

    def student(self, name: str) -> Detector:
        return copy.deepcopy(self._once(name))

    def _teacher(self, name: str) -> FrozenTeacher:
        torch.manual_seed(1)
        return FrozenTeacher(TEACHERS[name](self.folder), name)

    def _student(self, name: str) -> Detector:
        torch.manual_seed(0)
        student = STUDENTS[name].build(self.folder)
        for key, parameter in student.named_parameters():
            if any(layer in key for layer in CLASS_LAYERS):
                # or the scores of most families would all lie below the threshold
                nn.init.normal_(parameter, std=2 / parameter[0].numel() ** 0.5)
        return student


def settle(detector: Detector, images: torch.Tensor) -> None:
    """Give batch normalisation the statistics of one batch: after so few steps, those of training are nobody's."""
    norms = [layer for layer in detector.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None
    with torch.no_grad():
        detector.train().features(images)


def attempt(teacher: str, student: str, workshop: Workshop) -> Row:
    """Try one combination: refusals and failures are results too."""
    taught, learner = workshop.teacher(teacher), workshop.student(student)
    row = Row(
        teacher=teacher, student=student, passed=False, refused=False, note="", levels=[], frozen=frozen_parts(learner)
    )
    torch.manual_seed(3)
    try:
        task = DistillationTask(learner, [StageConfig(1, teacher)], [[taught]], {"name": LOSS})
    except DfmsdError as refusal:
        return {**row, "refused": True, "note": str(refusal)}
    pairs = task.lessons_of(0)[0].criterion.pairs
    row["levels"] = [f"{own.name} /{own.stride} <- {theirs.name} /{theirs.stride}" for own, theirs in pairs]
    images, targets = batch(SSD_SIDE if "ssd" in (teacher, student) else SIDE)
    row["note"] = train(task, images, targets) or compare_files(learner, STUDENTS[student].load, images)
    return {**row, "passed": not row["note"]}


def frozen_parts(detector: Detector) -> list[str]:
    """Name the largest parts of which no parameter learns, and what else does not."""
    parts: list[str] = []
    for name, part in [*detector.model.named_modules(), *detector.model.named_parameters()]:
        inside = name.startswith(tuple(f"{outer}." for outer in parts))
        values = [part] if isinstance(part, nn.Parameter) else list(part.parameters())
        if not inside and values and not any(value.requires_grad for value in values):
            parts.append(name)
    return parts


def batch(side: int) -> tuple[torch.Tensor, list[Target]]:
    """Two images with objects of all sizes."""
    x, y, size = (BOXES * side / SIDE).unbind(1)
    boxes = torch.stack([x - size / 2, y - size / 2, x + size / 2, y + size / 2], dim=1)
    labels = torch.arange(len(boxes)) % len(CLASSES)
    return torch.rand(2, 3, side, side), [
        {"boxes": boxes, "labels": labels},
        {"boxes": boxes[:3], "labels": labels[:3]},
    ]


def train(task: DistillationTask, images: torch.Tensor, targets: list[Target]) -> str:
    """Train for `STEPS` steps; gives what went wrong."""
    optimizer = build_optimizer(task.trainable, OptimConfig("adamw", LR))
    check_optimizer(optimizer, task)
    task.train().enter_stage(0)
    wanted = {name: value for name, value in task.student.named_parameters() if value.requires_grad}
    reached: set[str] = set()
    for step in range(STEPS):
        optimizer.zero_grad()
        total = torch.stack(list(task(images, targets).values())).sum()
        if not bool(total.isfinite()):
            return f"the loss of step {step + 1} is {float(total.detach())}"
        total.backward()
        optimizer.step()
        reached |= {name for name, value in wanted.items() if value.grad is not None and bool(value.grad.any())}
    missed = [name.removeprefix("model.") for name in wanted if name not in reached]
    return f"no gradient reaches {', '.join(missed)}" if missed else ""


def compare_files(trained: Detector, load: Callable[[Path], Detector], images: torch.Tensor) -> str:
    """Save a student, load it and detect with both; gives what differs."""
    settle(trained, images)
    trained.eval()
    with tempfile.TemporaryDirectory() as folder:
        save_detector(trained, folder)
        loaded = load(Path(folder))
    sizes = [(images.shape[-2], images.shape[-1])] * len(images)
    both = zip(trained.detect(images, sizes), loaded.detect(images, sizes), strict=True)
    counts = 0
    for before, after in both:
        counts += len(before["scores"])
        for key, value in before.items():
            if not torch.equal(value, after[key]):  # type: ignore[literal-required]
                return f"{key} differ after loading"
    return "" if counts else "nothing is detected, so that nothing can be compared"
