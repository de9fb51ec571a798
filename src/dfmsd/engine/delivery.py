"""The choice between a student's last weights and their moving average, at the end of a run."""

from __future__ import annotations

from collections.abc import Callable

from torch.utils.data import DataLoader

from dfmsd.data.transforms import Sample
from dfmsd.detectors import Detector
from dfmsd.engine.average import WeightAverage
from dfmsd.engine.callbacks import PrintLine
from dfmsd.evaluation.evaluate import Metrics, evaluate, percent
from dfmsd.runfolder import RunFolder
from dfmsd.utils.device import default_device
from dfmsd.utils.distributed import is_first_process
from dfmsd.utils.files import write_json

Share = Callable[[Metrics | None], Metrics | None]
"""Returns the first process's value in all processes."""


def choose_weights(
    run: RunFolder,
    student: Detector,
    metrics: Metrics,
    average: WeightAverage,
    loader: DataLoader[Sample],
    share: Share,
    print_line: PrintLine,
) -> Metrics:
    """Put the average into the student if its AP is higher.

    Args:
        run: its folder, for the metrics of the average.
        student: with its last weights.
        metrics: of the last weights.
        average: of the weights.
        loader: validation images.
        share: gives all processes the metrics that the first one measures.
        print_line: prints both APs and the choice.

    Returns:
        The metrics of the weights that the student has then.
    """
    measured = None
    if is_first_process():
        with average.applied(student):
            measured = evaluate(student, loader, device=default_device())
        write_json(run.average_metrics_file, measured)
    measured = share(measured)
    assert measured is not None
    higher = is_higher(measured["AP"], metrics["AP"])
    if is_first_process():
        aps = f"last {percent(metrics['AP'])}, average {percent(measured['AP'])}"
        print_line(f"{aps}: delivered the {'average' if higher else 'last weights'}")
    if not higher:
        return metrics
    average.apply(student)
    return measured


def is_higher(ap: float | None, other: float | None) -> bool:
    """Return whether an AP is above another one; None, without objects, is below all."""
    return ap is not None and (other is None or ap > other)
