"""Drafts of a first run and of its teacher's training."""

from __future__ import annotations

from collections.abc import Sequence

from dfmsd.data.config import DataConfig
from dfmsd.distillation.balance import DEFAULT_BALANCE
from dfmsd.losses import DEFAULT_LOSS
from dfmsd.starting import numbers
from dfmsd.starting.draft import Choice, Draft, plain
from dfmsd.starting.facts import Facts, TeacherFacts
from dfmsd.starting.models import Keys, fits_inheriting

TEACHER_JITTER = [0.75, 1.35]
"""Scale jitter of every teacher in docs/results-adamw.md."""


def plan_data(facts: Facts, epochs: int) -> dict[str, Choice]:
    """Choose the data section of a run of this many epochs."""
    image_size = numbers.choose_image_size(facts)
    section = {"root": Choice(facts.root)}
    if facts.holdout:
        section["holdout"] = Choice(facts.holdout, "there is no val split: AP is measured on this share of the images")
    section |= {
        "image_size": image_size,
        "batch_size": numbers.choose_batch_size(facts),
        "augment": numbers.choose_augment(epochs),
    }
    if facts.root == "digits":
        section["flip"] = Choice(0.0, "a mirrored digit is not a digit")
    else:
        section["flip"] = Choice(0.5, "set 0 where left and right differ, as in text")
    return section | {"cache": numbers.choose_image_cache(facts, int(image_size.value))}


def plan_distillation(
    facts: Facts, teacher: TeacherFacts, data: dict[str, Choice], student: Keys, epochs: Choice, out: str
) -> Draft:
    """Draft a distillation with one stage.

    Args:
        facts: Of data and machine.
        teacher: Of the stage.
        data: Its section.
        student: Its section.
        epochs: Of the stage.
        out: Run folder.
    """
    versions = DataConfig(**plain(data)).versions(int(epochs.value))
    size, seen = int(data["image_size"].value), {}
    larger = numbers.choose_teacher_size(facts, teacher)
    if larger is not None and int(larger.value) > size:
        size = int(larger.value)
        seen["teacher_size"] = larger
    inherit = {}
    if fits_inheriting(student, teacher, facts.class_names):
        inherit["inherit"] = Choice(False, "true fits this pair: the teacher's head, +2.1 AP on digits")
    return {
        "data": data,
        "student": student,
        "stages": [{"teacher": Choice(teacher.reference), "epochs": epochs}],
        "loss": {"name": Choice(DEFAULT_LOSS)},
        "balance": Choice(DEFAULT_BALANCE, "gradient of the teacher's loss, relative to the student's own"),
        **inherit,
        **seen,
        "teacher_cache": numbers.choose_teacher_cache(facts, teacher.levels, size, versions),
        "eval_every": _evaluations(int(epochs.value)),
        "out": Choice(out),
    }


def plan_training(data: dict[str, Choice], model: Keys, epochs: Choice, out: str) -> Draft:
    """Draft the training of a teacher.

    Args:
        data: The distillation's section.
        model: The teacher's keys.
        epochs: Of the training.
        out: Run folder.
    """
    if data["augment"].value == "light":
        jitter = Choice(TEACHER_JITTER, "as for the teachers of the earlier results")
        data = data | {"augment": Choice("light", "flips, and the scales below"), "scale_jitter": jitter}
    return {
        "data": data,
        "model": model,
        "epochs": epochs,
        "eval_every": _evaluations(int(epochs.value)),
        "out": Choice(out),
    }


def describe_facts(facts: Facts) -> Sequence[str]:
    """Return lines on what the choices are based on."""
    kind = "a GPU" if facts.gpu else "a CPU"
    return [
        f"Chosen for {facts.train_images:,} images to train on and {facts.val_images:,} to evaluate on, of about "
        f"{facts.side} pixels,",
        f"with {len(facts.sizes):,} objects of {len(facts.class_names)} class(es), and {kind}.",
    ]


def _evaluations(epochs: int) -> Choice:
    every = numbers.choose_eval_every(epochs)
    return Choice(every, f"{-(-epochs // every)} evaluation(s); each takes time")
