"""Sizes and lengths of a first run, as pure functions of the facts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from dfmsd.data.config import DataConfig
from dfmsd.distillation.cache import Layout
from dfmsd.engine.config import DistillConfig
from dfmsd.starting.draft import Choice
from dfmsd.starting.facts import Facts, TeacherFacts
from dfmsd.types import LevelSpec
from dfmsd.utils.cachedir import GIB

CELL = 8
"""Stride of P3, the finest level of one-stage detectors: a smaller object has no cell of its own."""
SHARE = 0.9
"""Share of the objects that should be at least as large as a cell."""
STEP = 32
SMALLEST = 192
LARGEST = {"cpu": 512, "gpu": 1024}
"""Image sizes are multiples of `STEP` in this range, if the images are as large."""
ENLARGED = 2
"""A teacher sees images enlarged by this factor at most: beyond it, its time grows and what it sees does not."""
BATCH = {"cpu": 8, "gpu": 16}
FEWEST_STEPS, MOST_STEPS = 3_000, 10_000
FEW_STEPS = 1_000
"""Fewer, where a budget asks for them, are remarked upon."""
USUAL_EPOCHS = 12
"""COCO's usual schedule, where it stays within the range of steps."""
MANY_EPOCHS = 30
"""From as many on, strong augmentation pays: each image has been seen too often as it is."""
MOST_EPOCHS = 300
"""Of a data set so small that even they do not reach `FEWEST_STEPS`."""
EVALUATIONS = 10
MEMORY_SHARE = 0.25
"""Share of the machine's memory that the teacher cache may take."""


def choose_image_size(facts: Facts) -> Choice:
    """Choose the teacher's own size, or the smallest one at which nearly all objects cover a cell of P3."""
    largest = LARGEST[machine(facts)]
    native = STEP * math.ceil(facts.side / STEP)
    teacher = facts.teacher.image_size if facts.teacher else None
    if teacher is not None and teacher <= largest:
        return Choice(teacher, f"the teacher's; {_covered(facts, teacher)}")
    wanted = STEP * math.ceil(round(CELL / float(torch.quantile(_sample(facts), 1 - SHARE))) / STEP)
    size = min(max(wanted, SMALLEST), native, largest)
    reason = _covered(facts, size)
    if size < wanted:
        reason += ", and the images are no larger" if size == native else f", and {wanted} would take longer"
    return Choice(size, reason)


def choose_teacher_size(facts: Facts, teacher: TeacherFacts) -> Choice | None:
    """Choose the teacher's own size, or a smaller one where the images are far smaller; None if it is unknown."""
    own = teacher.image_size
    if own is None:
        return None
    most = STEP * math.ceil(ENLARGED * facts.side / STEP)
    if own <= most:
        return Choice(own, "its own; at the student's size it would miss small objects")
    return Choice(most, f"{ENLARGED} times the images' size; its own is {own}, which would take longer")


def choose_augment(epochs: int) -> Choice:
    """Choose strong augmentation for a run of many epochs."""
    if epochs < MANY_EPOCHS:
        return Choice("light", f"flips; from {MANY_EPOCHS} epochs on, strong is better")
    return Choice("strong", "flips, scales, colors and mosaics; the teacher should be used to them, see dfmsd check")


def choose_batch_size(facts: Facts) -> Choice:
    """Choose the measured one for the machine, if there are as many images."""
    size = BATCH[machine(facts)]
    if facts.train_images < size:
        return Choice(facts.train_images, "all training images")
    return Choice(size, "as in the measured runs on CPUs" if size == BATCH["cpu"] else "a GPU is slow with fewer")


def choose_epochs(images: int, batch_size: int, given: int | None = None) -> Choice:
    """Choose as many epochs as take a sensible number of steps.

    Args:
        images: To train on.
        batch_size: Of the run.
        given: What the user names, in place of them.
    """
    if given is not None:
        return Choice(given, f"{describe_steps(images, batch_size, given)}; as given")
    per_epoch = count_steps(images, batch_size)
    steps = min(max(USUAL_EPOCHS * per_epoch, FEWEST_STEPS), MOST_STEPS)
    epochs = min(math.ceil(steps / per_epoch), MOST_EPOCHS)
    return Choice(epochs, f"{describe_steps(images, batch_size, epochs)}; {FEWEST_STEPS:,} to {MOST_STEPS:,} are usual")


def count_steps(images: int, batch_size: int, epochs: int = 1) -> int:
    """Return the steps of some epochs; a last, smaller batch is left out."""
    return epochs * max(1, images // batch_size)


def describe_steps(images: int, batch_size: int, epochs: int) -> str:
    """Return the number of steps in words, such as ``of 56 steps, 3,024 in all``."""
    return f"of {count_steps(images, batch_size):,} step(s), {count_steps(images, batch_size, epochs):,} in all"


def choose_eval_every(epochs: int) -> int:
    """Return the epochs between evaluations that make about `EVALUATIONS` of them."""
    return max(1, epochs // EVALUATIONS)


def choose_image_cache(facts: Facts, image_size: int) -> Choice:
    """Keep resized images in RAM if they fit."""
    need = 3 * image_size**2 * (facts.train_images + facts.val_images) / GIB
    if need <= DataConfig.cache_gib:
        return Choice("ram", f"the resized images take at most {need:.2f} GiB")
    return Choice("off", f"the resized images may take {need:.0f} GiB, so processes load them in every epoch")


def choose_teacher_cache(facts: Facts, levels: Sequence[LevelSpec], image_size: int, versions: int | None) -> Choice:
    """Cache the teacher's features in RAM on a CPU, if they fit.

    Args:
        facts: Of data and machine.
        levels: The teacher's pyramid.
        image_size: That the teacher sees.
        versions: Of each image, 2 with flips; None if it is new in every epoch.
    """
    if versions is None:
        return Choice(None, "the augmentation changes the pixels in every epoch")
    if facts.gpu:
        return Choice(None, "its gain has been measured on CPUs only")
    need = Layout(tuple(levels), (image_size, image_size)).nbytes * versions * facts.train_images / GIB
    room = min(DistillConfig.teacher_cache_gib, MEMORY_SHARE * (facts.memory or math.inf) / GIB)
    if need > room:
        return Choice(None, f"the teacher's features may take {need:.2f} GiB, more than the {room:.2f} to spare")
    times = "once" if versions == 1 else "twice, flipped and not"
    return Choice("ram", f"at most {need:.2f} GiB; the teacher sees each image {times}, instead of in every epoch")


def machine(facts: Facts) -> str:
    """Return ``gpu`` or ``cpu``."""
    return "gpu" if facts.gpu else "cpu"


def _covered(facts: Facts, size: int) -> str:
    share = float((facts.sizes * size >= CELL).float().mean())
    return f"{share:.0%} of the objects cover a cell of the finest level, {CELL} pixels"


def _sample(facts: Facts) -> torch.Tensor:
    """Return at most 10 million object sizes, evenly spread, which is as many as torch.quantile takes."""
    return facts.sizes[:: max(1, math.ceil(len(facts.sizes) / 10_000_000))]
