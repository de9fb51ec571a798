"""Plot the tables of benchmarks/results/table-*.json into docs/assets/gains.svg and differences.svg.

``write.py`` calls `draw`. In ``gains.svg`` each line is a data set and a teacher, each marker a method's mean gain over
the runs of the same seeds without a teacher; small dots are DFMSD's own seeds. In ``differences.svg`` each line is
DFMSD's difference to one method, with Student's 95 % interval, or its range where there are two seeds.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
from claims import TABLES
from matplotlib.axes import Axes
from scores import Scores, comparison

ASSETS = Path(__file__).resolve().parents[2] / "docs" / "assets"
PAIRS = [
    (f"{label}: FCOS from {kind}", name, teacher)
    for label, name in TABLES.items()
    for kind, teacher in [("Faster R-CNN", "T2"), ("FCOS", "T1")]
]
"""Label, results/<name>.json, and the teacher."""
BLUE, GRAY = "#1f6feb", "#8b949e"


def draw_pair(axes: Axes, height: float, table: Scores, teacher: str) -> None:
    """Draw the gains of the methods with one teacher at one height."""
    axes.axhline(height, color="#eaeef2", linewidth=1, zorder=0)
    for row in table.ranked(teacher):
        gains = list(table.differences(row).values())
        if not row.startswith("dfmsd"):
            axes.plot(mean(gains), height, "|", color=GRAY, markersize=13, mew=2)
            continue
        axes.plot(gains, [height] * len(gains), "o", color=BLUE, markersize=4, alpha=0.45, mew=0)
        axes.plot(mean(gains), height, "o", color=BLUE, markersize=10, zorder=3)
        place, box = (mean(gains), height), {"facecolor": "white", "edgecolor": "none", "pad": 1}
        style = {"textcoords": "offset points", "ha": "center", "color": BLUE, "bbox": box}
        axes.annotate(f"{mean(gains):+.1f}", place, (0, 12), **style)


def draw_gains(axes: Axes) -> None:
    """Draw all pairs, one below the other."""
    for position, (_, name, teacher) in enumerate(PAIRS):
        draw_pair(axes, -position, comparison(name), teacher)
    axes.set_yticks([-position for position in range(len(PAIRS))], [label for label, _, _ in PAIRS])
    axes.set_ylim(0.6 - len(PAIRS), 0.6)
    axes.set_xlabel("AP gained over training without a teacher")
    axes.plot([], [], "o", color=BLUE, markersize=10, label="DFMSD (small dots: its seeds)")
    axes.plot([], [], "|", color=GRAY, markersize=13, mew=2, linestyle="", label="the other methods of the table")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.22), ncols=2, frameon=False)


def draw_differences(axes: Axes) -> None:
    """Draw DFMSD's difference to each method of all pairs, one below the other."""
    labels: list[str] = []
    for label, name, teacher in PAIRS:
        table = comparison(name)
        for row in table.ranked(teacher):
            if row.startswith("dfmsd"):
                continue
            values = table.differences(f"dfmsd@{teacher}", row).values()
            low, high = table.ends(f"dfmsd@{teacher}", row) or (min(values), max(values))
            axes.plot([low, high], [-len(labels)] * 2, color=BLUE, linewidth=2, alpha=0.6)
            axes.plot(mean(values), -len(labels), "o", color=BLUE)
            labels.append(f"{label}, {row.partition('@')[0]}")
    axes.set_yticks([-place for place in range(len(labels))], labels)
    axes.set_xlabel("AP of DFMSD - AP of the method, mean and 95 % interval (two seeds: range)")


def draw(folder: Path = ASSETS) -> None:
    """Draw both pictures into SVG files of a folder."""
    plt.rcParams.update({"font.size": 11, "svg.fonttype": "none", "svg.hashsalt": "results"})
    for name, height, content in [("gains", 3.2, draw_gains), ("differences", 6.5, draw_differences)]:
        figure, axes = plt.subplots(figsize=(9, height), layout="constrained")
        content(axes)
        axes.axvline(0, color="#57606a", linewidth=1)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(left=False)
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, facecolor="white")
        plt.close(figure)
