"""Report sections with results: one row per model, AP per class and object size, gains over the baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dfmsd.reporting.page import Figure, Section, Table
from dfmsd.reporting.plots import bars
from dfmsd.reporting.records import RunRecord

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
SIZES = {"APs": "small, below 32² pixels", "APm": "medium", "APl": "large, above 96² pixels"}
AP_NOTE = "AP is COCO average precision on the validation images, in percent."


@dataclass(frozen=True)
class ModelRow:
    """One model in the table of results.

    Attributes:
        name: displayed name.
        metrics: as returned by `dfmsd.evaluation.evaluate`, 0..1.
        parameters: number of parameters.
        epochs: number of epochs trained.
        size: of the weights file, in bytes.
        flops: of detection in one image.
        latency: of detection in one image, in milliseconds.
        test: AP on the test split, 0..1.
    """

    name: str
    metrics: Mapping[str, Any] | None = None
    parameters: int | None = None
    epochs: int | None = None
    size: int | None = None
    flops: int | None = None
    latency: float | None = None
    test: float | None = None

    def ap(self, name: str = "AP") -> float | None:
        """Return a metric in percent; None if it is unknown or undefined."""
        return percent((self.metrics or {}).get(name))


def model_row(name: str, record: RunRecord) -> ModelRow:
    """Build the row of a run from its folder."""
    test = (record.test_metrics or {}).get("AP")
    return ModelRow(name, record.metrics, record.parameters, record.trained_epochs, record.weights_bytes, test=test)


def results_section(models: Sequence[ModelRow], notes: Sequence[str]) -> Section:
    """Compare models in one table; what is unknown for all of them has no column."""
    costs = {
        "test AP": [format_percent(percent(model.test)) for model in models],
        "GFLOPs": [_scaled(model.flops, 1e9, ".2f") for model in models],
        "CPU ms": [_scaled(model.latency, 1, ".0f") for model in models],
        "file, MB": [_scaled(model.size, 1e6, ".1f") for model in models],
    }
    known = {name: column for name, column in costs.items() if any(cell != "–" for cell in column)}
    if len(models) == 1:
        model = models[0]
        facts = {name: format_percent(model.ap(name)) for name in METRICS if name in (model.metrics or {})}
        facts |= {"parameters": _count(model.parameters), "epochs": _count(model.epochs)}
        facts |= {name: column[0] for name, column in known.items()}
        return Section("Results", notes, Table(list(facts), [list(facts.values())]))
    rows = [
        [
            model.name,
            format_percent(model.ap()),
            format_percent(model.ap("AP50")),
            _count(model.parameters),
            _count(model.epochs),
            *(column[index] for column in known.values()),
        ]
        for index, model in enumerate(models)
    ]
    return Section("Results", notes, Table(("run", "AP", "AP50", "parameters", "epochs", *known), rows))


def classes_section(models: Sequence[ModelRow], student: str, baseline: str | None) -> Section:
    """Compare AP per class and per object size.

    Args:
        models: those without metrics are left out.
        student: name of the model the report is about.
        baseline: name of the model it is compared with.
    """
    known = {model.name: model for model in models if (model.metrics or {}).get("per_class")}
    if student not in known:
        return Section("Classes", ["There are no metrics per class."])
    # the student gets the first color, as in the other plots of the page
    shown = {name: known[name] for name in dict.fromkeys((student, baseline, *known)) if name in known}
    classes = {name: _per_class(model) for name, model in shown.items()}
    sizes = {name: {label: model.ap(key) for key, label in SIZES.items()} for name, model in shown.items()}
    reference = baseline if baseline in shown else None
    rows = [
        (name, format_percent(value), *(_gain(classes[reference].get(name), value) if reference else ()))
        for name, value in classes[student].items()
    ]
    header = ("class", "AP", *((reference, "difference") if reference else ()))
    figures: list[Figure] = []
    for kind, groups in (("class", classes), ("object size", sizes)):
        if any(value is not None for value in groups[student].values()):
            figures.append(bars(f"AP by {kind}", groups, "AP in percent"))
            if reference:
                gains = {"difference": difference(groups[student], groups[reference])}
                figures.append(bars(f"AP gain over {reference} by {kind}", gains, "Difference in AP", signed=True))
    absent = any(row[1] == "–" for row in rows)
    notes = ["A dash means that the validation images contain no object of the class."] if absent else []
    return Section("Classes", notes, Table(header, rows), figures)


def percent(value: float | None) -> float | None:
    """Convert a metric to percent; None for None, NaN and COCO's -1 (undefined)."""
    return None if value is None or math.isnan(value) or value < 0 else 100 * value


def format_percent(value: float | None) -> str:
    """Format a percentage; a dash for None."""
    return "–" if value is None else f"{value:.1f}"


def describe_gain(gain: float, reference: str) -> str:
    """Describe a difference in AP to a reference, such as ``2.3 above the baseline``."""
    return f"{abs(gain):.1f} {'below' if gain < 0 else 'above'} {reference}"


def difference(after: Mapping[str, float | None], before: Mapping[str, float | None]) -> dict[str, float | None]:
    """Subtract values by name; None if either is unknown."""
    gains: dict[str, float | None] = {}
    for name, value in after.items():
        former = before.get(name)
        gains[name] = None if value is None or former is None else value - former
    return gains


def _per_class(model: ModelRow) -> dict[str, float | None]:
    return {name: percent(value) for name, value in (model.metrics or {})["per_class"].items()}


def _gain(before: float | None, after: float | None) -> tuple[str, str]:
    gain = "–" if before is None or after is None else f"{after - before:+.1f}"
    return format_percent(before), gain


def _scaled(value: float | None, unit: float, form: str) -> str:
    return "–" if value is None else f"{value / unit:{form}}"


def _count(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"
