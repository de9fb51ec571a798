"""Outcome of a search: its sentence, and the best config as a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dfmsd.comparison.statistics import paired_differences
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.saved_config import to_yaml
from dfmsd.tuning.contest import BASELINE, BEST, Candidate
from dfmsd.tuning.plans import CONFIG
from dfmsd.tuning.problem import Problem
from dfmsd.utils.files import write_text


@dataclass(frozen=True)
class TuneResult:
    """The outcome of a search.

    Attributes:
        best: the best config, as in ``best.yaml``.
        winner: its name: ``trial 3``, or ``config`` if no trial was better.
        summary: what it gains, and whether that is more than another seed makes.
        candidates: what was measured with two seeds on the held-out images.
        final: AP on the val split, 0..1, after training on all training images, of ``best``, of ``config`` if it is
            another one, and of ``baseline``: `best` without teachers.
        out: folder of the search.
    """

    best: DistillConfig
    winner: str
    summary: str
    candidates: tuple[Candidate, ...]
    final: Mapping[str, float | None]
    out: Path

    def as_json(self) -> dict[str, Any]:
        """Return the content of ``result.json``: winner, its parameters, and all AP, 0..1; seeds are strings."""
        return {
            "winner": self.winner,
            "parameters": next(one.parameters for one in self.candidates if one.name == self.winner),
            "held_out": {one.name: {str(seed): ap for seed, ap in one.aps.items()} for one in self.candidates},
            "val": dict(self.final),
        }


def summarize(candidates: Sequence[Candidate], winner: Candidate, final: Mapping[str, float | None]) -> str:
    """State what the winner gains over the config, and over itself without teachers, beside what a seed changes.

    Args:
        candidates: with two seeds each.
        winner: one of them.
        final: AP on val by name, see `TuneResult`.
    """
    named = {candidate.name: candidate for candidate in candidates}
    spread = max(max(one.aps.values()) - min(one.aps.values()) for one in candidates)
    text = [f"The best configuration is {winner.name}, with {100 * winner.mean:.1f} AP on the held-out images."]
    if winner.name == CONFIG:
        text.append("No trial was better than the config with both seeds together.")
    for name in (CONFIG, BASELINE):
        if name != winner.name:
            text.append(_gain(winner, named[name], spread))
    text.append(_final(final))
    return " ".join(text)


def _gain(winner: Candidate, other: Candidate, spread: float) -> str:
    gains = paired_differences(winner.aps, other.aps)
    gain = sum(gains.values()) / len(gains)
    of_seeds = ", ".join(f"{100 * value:+.1f} with seed {seed}" for seed, value in gains.items())
    than = "is more than" if gain > spread else "is not more than"
    return (
        f"Its difference to {FINAL_LABELS[other.name]} is {100 * gain:+.1f} ({of_seeds}), which {than} the "
        f"{100 * spread:.1f} that the two seeds of a configuration differ by at most."
    )


def _final(final: Mapping[str, float | None]) -> str:
    known = {name: "unknown" if ap is None else f"{100 * ap:.1f}" for name, ap in final.items()}
    others = [f"{known[name]} for {label}" for name, label in FINAL_LABELS.items() if name != BEST and name in known]
    return f"On val, after training on all training images: {known[BEST]} AP, and {' and '.join(others)}."


FINAL_LABELS = {BEST: "the best configuration", CONFIG: "the config", BASELINE: "the same without a teacher"}


def write_best(problem: Problem, config: DistillConfig, winner: Candidate) -> DistillConfig:
    """Write ``best.yaml``, and return its config.

    Args:
        problem: what was searched.
        config: of the winner, on all training images.
        winner: its name is in the file's first line.
    """
    best = replace(config, out=str(problem.folder.path / BEST))
    title = f"# {winner.name} of the search in {problem.folder.path}: dfmsd distill --config {problem.folder.best_file}"
    write_text(problem.folder.best_file, f"{title}\n{to_yaml(best)}")
    return best
