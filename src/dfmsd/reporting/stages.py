"""Report section on a run's stages: how its teachers were made, which one taught when, and in whose channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from dfmsd.distillation.stages import StageConfig
from dfmsd.engine.config import DistillConfig
from dfmsd.reporting.page import Figure, Section, Table
from dfmsd.reporting.plots import bars, escape_label
from dfmsd.reporting.records import RunRecord, read_run
from dfmsd.reporting.runconfig import basis_of, run_config, teacher_folder, teacher_references

TEACHER = "the teacher"
ROTATED = (
    "The teacher of a rotated stage is imitated in the channels of another detector. The rotation is fitted on "
    "training images when the stage begins. The plot shows the correlation of equal channels on them before "
    "and after it, per level of the teacher; 1 is perfect."
)


def stages_sections(config: DistillConfig | None, record: RunRecord, suffix: str = "") -> list[Section]:
    """Show the plan of a run with several stages or a rotated one, and what the rotations changed.

    Args:
        config: of the run, if it can be read.
        record: of the run.
        suffix: appended to the section title.
    """
    if config is None or not config.teaches:
        return []
    channels = [_channels(record, config, number) for number in range(1, len(config.stages) + 1)]
    rotated = [number for number, texts in enumerate(channels, 1) if set(texts) - {TEACHER}]
    if len(config.stages) == 1 and not rotated:
        return []
    fits = {number: fit for number in rotated if (fit := (record.basis or {}).get(str(number)))}
    notes = [ROTATED] if rotated else []
    notes += [f"The rotation of stage {number} has not been fitted yet." for number in rotated if number not in fits]
    made = teacher_trainings(config)
    rows = [(name, str(training.epochs), _teachers(training) or "none", "–") for name, training in made.items()]
    rows += [
        (
            str(number),
            str(stage.epochs),
            (" & ".join(stage.teachers) or "none") + _alone(stage),
            " & ".join(texts) or "–",
        )
        for number, (stage, texts) in enumerate(zip(config.stages, channels, strict=True), 1)
    ]
    table = Table(("stage", "epochs", "teacher", "imitated in the channels of"), rows)
    figures = [_plan(config, channels, made), *(_correlations(number, fit) for number, fit in fits.items())]
    return [Section(f"Stages{suffix}", notes, table, figures)]


def teacher_trainings(config: DistillConfig, above: Sequence[str] = ()) -> dict[str, DistillConfig]:
    """Return the trainings of a run's teachers and of theirs, as far as their run folders exist, first ones first.

    Args:
        config: of the run.
        above: names of the runs that it teaches.
    """
    found: dict[str, DistillConfig] = {}
    for reference in teacher_references(config):
        folder = teacher_folder(reference)
        training = run_config(read_run(folder, log=False)) if folder else None
        if folder and training and folder.name not in above:
            found |= teacher_trainings(training, [*above, folder.name])
            found[folder.name] = training
    return found


def _teachers(training: DistillConfig) -> str:
    return ", ".join(teacher_references(training))


def _channels(record: RunRecord, config: DistillConfig, number: int) -> list[str]:
    """Return in whose channels the teachers of a stage are imitated; a single entry if they agree."""
    names = {"own": TEACHER, "former": f"stage {number - 1}", "student": "the student"}
    teachers = range(len(config.stages[number - 1].teachers))
    texts = [names[basis_of(record, config, number, index)] for index in teachers]
    return texts if len(set(texts)) > 1 else texts[:1]


def _plan(config: DistillConfig, channels: Sequence[Sequence[str]], made: Mapping[str, DistillConfig]) -> Figure:
    """Draw the trainings of the teachers and the stages as bars over the epochs."""
    before = [training.epochs for training in made.values()]
    ends = list(accumulate(stage.epochs for stage in config.stages))
    plan = zip(config.stages, channels, strict=True)
    labels = [[name, f"by {_teachers(training) or 'labels alone'}"] for name, training in made.items()]
    labels += [_label(stage, number, texts) for number, (stage, texts) in enumerate(plan, 1)]
    trace: dict[str, Any] = {
        "type": "bar",
        "orientation": "h",
        "name": "epochs",
        "y": ["<br>".join(map(escape_label, label)) for label in labels],
        "base": [*(0 for _ in before), 0, *ends[:-1]],
        "x": [*before, *(stage.epochs for stage in config.stages)],
        "hovertemplate": "%{x} epochs<extra></extra>",
    }
    layout = {
        "margin": {"l": 8, "r": 12, "t": 24, "b": 40},
        "xaxis": {"title": {"text": "Epochs"}},
        "yaxis": {"type": "category", "autorange": "reversed"},
        "showlegend": False,
    }
    described = "; ".join(
        f"{' '.join(label)} until epoch {end}" for label, end in zip(labels, [*before, *ends], strict=True)
    )
    return Figure("Plan", [trace], layout, f"Plan: {described}.", height=110 + 50 * len(labels))


def _alone(stage: StageConfig) -> str:
    return "" if stage.labels else ", without labels"


def _label(stage: StageConfig, number: int, channels: Sequence[str]) -> list[str]:
    """Return the lines that describe a stage."""
    names = " & ".join(Path(name).name for name in stage.teachers) or "labels alone"
    rotated = bool(set(channels) - {TEACHER})
    return [f"{number}: {names}{_alone(stage)}", *[f"in the channels of {' & '.join(channels)}"] * rotated]


def _correlations(number: int, fit: Mapping[str, Mapping[str, Any]]) -> Figure:
    groups: dict[str, dict[str, float | None]] = {
        when: {level: round(values[when], 2) + 0.0 for level, values in fit.items()}  # + 0.0: no negative zero
        for when in ("before", "after")
    }
    return bars(f"Rotation of stage {number}", groups, "Correlation of equal channels", digits=2)
