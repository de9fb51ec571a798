"""The data, student and task of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from dfmsd.data.datamodule import CocoDataModule
from dfmsd.data.splitcheck import check_measurable, check_trainable, open_test_split, warn_of_contents
from dfmsd.detectors import Detector, build_detector
from dfmsd.detectors.classnames import check_names, with_names
from dfmsd.detectors.frameworks import FRAMEWORKS
from dfmsd.detectors.inference import device_of, eval_mode
from dfmsd.detectors.statedict import check_finite
from dfmsd.distillation.inherit import inherit, inherit_first_fitting
from dfmsd.distillation.task import DistillationTask
from dfmsd.distillation.teacher import FrozenTeacher
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.optim import OptimConfig
from dfmsd.engine.rng import seed_everything
from dfmsd.errors import DfmsdError, foreign_message
from dfmsd.utils.coerce import AUTO
from dfmsd.utils.console import console
from dfmsd.utils.distributed import is_first_process


def read_data(config: DistillConfig) -> CocoDataModule:
    """Read the data of a run, for its number of processes, with image digests if it caches teacher features.

    Raises:
        DfmsdError: they are damaged, or there is no object to train on or to measure AP with.
    """
    digest = config.teacher_cache is not None
    data = CocoDataModule(
        config.data,
        seed=config.seed,
        digest=digest,
        processes=config.processes[0],
        epochs=config.epochs,
        teacher_size=config.teacher_size,
    )
    check_contents(data)
    check_batches(data, config.optim, config.world_size)
    return data


def check_contents(data: CocoDataModule) -> None:
    """Refuse data without objects or with a damaged test split, and warn of what is unlikely to be meant.

    Raises:
        DfmsdError: there is no object to train on or to measure AP with, or the test split cannot be read.
    """
    train, val = data.train.coco, data.val.coco
    check_trainable(train)
    check_measurable(val)
    open_test_split(data.config)
    if is_first_process():
        warn_of_contents(train, val)


def check_batches(data: CocoDataModule, optim: OptimConfig, processes: int = 1) -> None:
    """Refuse batches of more images than there are: they would be smaller, with the learning rate of larger ones.

    Held-out images count, too: what a search finds on the others is then trained with all of them.

    Args:
        data: Of the run.
        optim: Its section.
        processes: Among which the images are divided.

    Raises:
        DfmsdError: says how large a batch may be.
    """
    images = data.num_labeled + (len(data.val) if data.config.holdout else 0)
    sizes = {
        "data.batch_size": (data.config.batch_size, processes),
        "optim.effective_batch": (optim.effective_batch, 1),
    }
    for name, (size, times) in sizes.items():
        if size is not None and size * times > images:
            where = f" in each of {times} processes" if times > 1 else ""
            largest = max(1, images // times)
            raise DfmsdError(
                f"{name} is {size}{where}, but there are {images} training images; set it to {largest} or fewer"
            )


def build_student(config: DistillConfig, class_names: Sequence[str], student: Detector | None = None) -> Detector:
    """Build the student, or check the one that was passed; the weights depend on the seed alone.

    Raises:
        DfmsdError: the student's classes are not those of the data, or it cannot take images of the run's size, or its
            backbone is to have its own learning rate and is not known, or it cannot take soft pseudo-labels.
    """
    seed_everything(config.seed)
    student = student or build_detector(config.student, class_names, config.teacher_classes)
    if student.class_names != tuple(class_names):
        raise DfmsdError(
            f"student: its classes {', '.join(student.class_names)} are not those of the data, "
            f"{', '.join(class_names)}; build it with the class names of the data, in their order"
        )
    if config.optim.backbone_lr != 1 and student.backbone_layers() is None:
        raise DfmsdError(
            f"optim.backbone_lr: it is not known which layers of {type(student).__name__} are its backbone; leave it "
            "out, or state them (Detector.backbone_layers)"
        )
    if config.data.pseudo.keep == "soft" and not student.soft_targets:
        raise DfmsdError(
            "data.pseudo.keep: soft needs a classification loss with targets between 0 and 1, as fcos, retinanet and "
            f"gfl have; that of {type(student).__name__} has none; set it to hard"
        )
    student.input_sizes.check_batches(config.data.image_size, config.data.pad, "the student")
    student.image_size = config.data.image_size
    return student


def teacher_names(config: DistillConfig) -> list[str]:
    """Return the teachers of all stages and the detector that the student inherits from by name, each once."""
    named = [name for stage in config.stages for name in stage.teachers]
    return list(dict.fromkeys([*named, config.ancestor] if config.ancestor else named))


def inherit_weights(config: DistillConfig, student: Detector, teachers: Mapping[str, Detector]) -> str | None:
    """Let the student inherit as ``config.inherit`` says.

    Args:
        config: the run.
        student: changed in place.
        teachers: a detector for each of `teacher_names`.

    Returns:
        A line about it, or None for ``inherit: false``.

    Raises:
        DfmsdError: the teacher that it names does not fit.
    """
    if config.inherit == AUTO:
        if config.student.init is not None:
            return f"student inherits nothing: it starts from {config.student.init}"
        return inherit_first_fitting(student, {name: teachers[name] for name in config.stages[0].teachers})
    if config.ancestor is None:
        return None
    return inherit(student, teachers[config.ancestor], config.ancestor).line


def assemble_task(config: DistillConfig, student: Detector, teachers: Mapping[str, Detector]) -> DistillationTask:
    """Build the task from its detectors; the weights of the training-only layers depend on the seed alone.

    Args:
        config: the run.
        student: trained in place; it first inherits what ``config.inherit`` says.
        teachers: a detector for each of `teacher_names`; those of the stages are frozen in place.

    Raises:
        DfmsdError: student and teachers do not fit together, one of them cannot take images of the batches' sizes, or
            a teacher has weights that are not finite.
    """
    starts_trained = config.student.init is not None or config.student.arch.startswith(tuple(FRAMEWORKS))
    known = None if starts_trained or not teachers else [teacher.class_names for teacher in teachers.values()]
    check_names(config.teacher_classes, student.class_names, known)
    teachers = {name: with_names(teacher, config.teacher_classes) for name, teacher in teachers.items()}
    inherited = inherit_weights(config, student, teachers)
    if inherited is not None:
        console.print(inherited, highlight=False)
    for name, teacher in teachers.items():
        check_finite(teacher, f"teacher {name}")
        size = config.teacher_size or config.data.image_size
        key = "teacher_size" if config.teacher_size else "data.image_size or teacher_size"
        teacher.input_sizes.check_batches(size, config.data.pad, f"teacher {name}", key)
    frozen = {
        name: FrozenTeacher(teachers[name], name, config.teacher_dtype, config.teacher_scale)
        for name in dict.fromkeys(name for stage in config.stages for name in stage.teachers)
    }
    seed_everything(config.seed)  # loading or training teachers may have drawn random numbers
    stages = [[frozen[name] for name in stage.teachers] for stage in config.stages]
    task = DistillationTask(student, config.stages, stages, config.loss, config.balance)
    if config.data.multi_scale is not None:
        _check_sizes(task, config.data.batch_sizes)
    return task


@torch.no_grad()
def _check_sizes(task: DistillationTask, sizes: Sequence[int]) -> None:
    """Refuse sizes of batches that do not suit the student or a teacher; the smallest and the largest are tried out."""
    detectors = {"the student": task.student, **{f"teacher {t.name}": t.detector for t in task.every_teacher}}
    for name, detector in detectors.items():
        for size in sizes:
            detector.input_sizes.check_side(size, "data.multi_scale", name)
        for size in (sizes[0], sizes[-1]):
            try:
                with eval_mode(detector):
                    detector.features(torch.zeros(1, 3, size, size, device=device_of(detector)))
            except (DfmsdError, RuntimeError, ValueError) as error:  # of any library
                raise DfmsdError(
                    f"data.multi_scale: {name} does not take images of {size} pixels ({foreign_message(error)}); leave "
                    "it out, or choose another range"
                ) from error


@contextmanager
def preserved_modes(detectors: Iterable[Detector]) -> Iterator[None]:
    """Restore ``requires_grad``, training mode and device of detectors on exit."""
    detectors = list(detectors)
    training = {module: module.training for detector in detectors for module in detector.modules()}
    learning = {parameter: parameter.requires_grad for detector in detectors for parameter in detector.parameters()}
    devices = [next((parameter.device for parameter in detector.parameters()), None) for detector in detectors]
    try:
        yield
    finally:
        for detector, device in zip(detectors, devices, strict=True):
            _move(detector, device)
        for module, mode in training.items():
            module.training = mode
        for parameter, flag in learning.items():
            parameter.requires_grad_(flag)


def _move(detector: Detector, device: torch.device | None) -> None:
    if device is not None and next(detector.parameters()).device != device:
        detector.to(device)
