"""The number of epochs that fits into a budget of hours."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace

from dfmsd.errors import DfmsdError
from dfmsd.estimation.estimator import Estimate
from dfmsd.estimation.prediction import predict
from dfmsd.starting.numbers import choose_eval_every
from dfmsd.utils.durations import HOUR, describe_duration


def epochs_within(hours: float, estimate: Estimate) -> int:
    """Return as many epochs of a run with one stage as fit into some hours, at most those that it has.

    A teacher that is trained first counts, and is shortened alike.

    Args:
        hours: Budget, above 0.
        estimate: Of the run.

    Raises:
        DfmsdError: Not even one epoch fits.
    """
    planned = estimate.config.epochs
    found = bisect_right(range(1, planned + 1), hours, key=lambda epochs: hours_of(estimate, epochs, planned))
    if found == 0:
        raise DfmsdError(
            f"hours: a single epoch takes {describe_duration(hours_of(estimate, 1, planned) * HOUR)} on this machine, "
            f"more than {hours:g} h; allow more, or name a smaller student"
        )
    return found


def shortened(epochs: int, share: float) -> int:
    """Return a share of some epochs, at least one."""
    return max(1, round(share * epochs))


def hours_of(estimate: Estimate, epochs: int, planned: int) -> float:
    """Predict the hours of a run and of the teachers made first, all with ``epochs / planned`` of their epochs."""
    config = estimate.config
    length = shortened(config.epochs, epochs / planned)
    config = replace(config, stages=[replace(config.stages[0], epochs=length)], eval_every=choose_eval_every(length))
    own = predict(config, estimate.parts_ms, **estimate.sizes).hours
    return own + sum(hours_of(teacher, epochs, planned) for teacher in estimate.teachers.values())
