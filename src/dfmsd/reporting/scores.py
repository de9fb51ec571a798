"""Who is how good: the headline, classes and object sizes, against the baseline where there is one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dfmsd.reporting.page import Figure, Section, Table
from dfmsd.reporting.plots import bars
from dfmsd.reporting.records import RunRecord

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
SIZES = {"APs": "small, under 32² pixels", "APm": "medium", "APl": "large, over 96² pixels"}
PERCENT = "AP is COCO's average precision on the validation images, in percent."


@dataclass(frozen=True)
class Contender:
    """One row of the headline.

    Attributes:
        name: as it is shown.
        metrics: of `dfmsd.evaluation.evaluate`, 0..1.
        parameters: how many.
        epochs: trained.
        size: of the weights file, in bytes.
        flops: of the detection in one image.
        latency: of the detection in one image, in ms.
    """

    name: str
    metrics: Mapping[str, Any] | None = None
    parameters: int | None = None
    epochs: int | None = None
    size: int | None = None
    flops: int | None = None
    latency: float | None = None

    def ap(self, name: str = "AP") -> float | None:
        """Give a metric in percent; none where it is unknown or there was nothing to measure."""
        return percent((self.metrics or {}).get(name))


def contender(name: str, record: RunRecord) -> Contender:
    """Read a row of the headline off a run folder."""
    return Contender(name, record.metrics, record.parameters, record.trained_epochs, record.weights_bytes)


def headline(contenders: Sequence[Contender], notes: Sequence[str]) -> Section:
    """Compare the runs in one table, with a column of costs only where one is known."""
    costs = {
        "GFLOPs": [_shown(one.flops, 1e9, ".2f") for one in contenders],
        "CPU ms": [_shown(one.latency, 1, ".0f") for one in contenders],
        "file, MB": [_shown(one.size, 1e6, ".1f") for one in contenders],
    }
    told = {name: column for name, column in costs.items() if any(cell != "–" for cell in column)}
    if len(contenders) == 1:
        only = contenders[0]
        facts = {name: written(only.ap(name)) for name in METRICS if name in (only.metrics or {})}
        facts |= {"parameters": _count(only.parameters), "epochs": _count(only.epochs)}
        facts |= {name: column[0] for name, column in told.items()}
        return Section("Result", notes, Table(list(facts), [list(facts.values())]))
    rows = [
        [one.name, written(one.ap()), written(one.ap("AP50")), _count(one.parameters), _count(one.epochs)]
        + [column[index] for column in told.values()]
        for index, one in enumerate(contenders)
    ]
    return Section("Result", notes, Table(("run", "AP", "AP50", "parameters", "epochs", *told), rows))


def classes_section(contenders: Sequence[Contender], student: str, baseline: str | None) -> Section:
    """Compare classes and object sizes.

    Args:
        contenders: those with metrics are shown.
        student: name of the one that is reported on.
        baseline: name of the one that it is compared with.
    """
    known = {one.name: one for one in contenders if (one.metrics or {}).get("per_class")}
    if student not in known:
        return Section("Classes", ["There are no metrics per class."])
    # the student has the first colour, here as in the other plots of the page
    shown = {name: known[name] for name in dict.fromkeys((student, baseline, *known)) if name in known}
    classes = {name: _per_class(one) for name, one in shown.items()}
    sizes = {name: {label: one.ap(key) for key, label in SIZES.items()} for name, one in shown.items()}
    before = baseline if baseline in shown else None
    rows = [
        (name, written(value), *(_against(classes[before].get(name), value) if before else ()))
        for name, value in classes[student].items()
    ]
    header = ("class", "AP", *((f"{before}", "difference") if before else ()))
    figures: list[Figure] = []
    for kind, groups in (("class", classes), ("object size", sizes)):
        if any(value is not None for value in groups[student].values()):
            figures.append(bars(f"AP by {kind}", groups, "AP in percent"))
            if before:
                gains = {"difference": difference(groups[student], groups[before])}
                figures.append(bars(f"AP above {before} by {kind}", gains, "difference in AP", signed=True))
    absent = any(row[1] == "–" for row in rows)
    notes = ["A dash: the validation images hold no object of this class."] if absent else []
    return Section("Classes", notes, Table(header, rows), figures)


def percent(value: float | None) -> float | None:
    """Give a metric in percent; none for a null, NaN and COCO's -1, which stands for nothing to measure."""
    return None if value is None or math.isnan(value) or value < 0 else 100 * value


def written(value: float | None) -> str:
    """Write a percentage, and a dash where there is none."""
    return "–" if value is None else f"{value:.1f}"


def difference(after: Mapping[str, float | None], before: Mapping[str, float | None]) -> dict[str, float | None]:
    """Subtract value by value; none where one of the two is not known."""
    gains: dict[str, float | None] = {}
    for name, value in after.items():
        former = before.get(name)
        gains[name] = None if value is None or former is None else value - former
    return gains


def _per_class(one: Contender) -> dict[str, float | None]:
    return {name: percent(value) for name, value in (one.metrics or {})["per_class"].items()}


def _against(before: float | None, after: float | None) -> tuple[str, str]:
    gain = "–" if before is None or after is None else f"{after - before:+.1f}"
    return written(before), gain


def _shown(value: float | None, unit: float, form: str) -> str:
    return "–" if value is None else f"{value / unit:{form}}"


def _count(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"
