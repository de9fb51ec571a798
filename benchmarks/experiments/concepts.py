"""Draw the pictures of docs/concepts.md from detectors, a run and two teachers into docs/assets/.

    python benchmarks/experiments/concepts.py --run runs/tables/digits/digits/dfmsd/seed-0 \
        --teacher runs/teachers/digits_faster_rcnn --reference runs/teachers/digits_fcos

``pairing.svg`` needs no files; ``weighting.svg`` is drawn from the ``log.csv`` of ``--run``, and ``basis.svg`` from the
run folders of two teachers of one width and images of ``--data``. Without their flags the other two are left as they
are.
"""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from dfmsd.data import DataConfig
from dfmsd.data.datamodule import CocoDataModule
from dfmsd.detectors import DetectorConfig, build_detector, load_detector
from dfmsd.losses.align import pair_levels
from dfmsd.losses.basis import EPS, FIT_IMAGES, LevelMoments
from dfmsd.losses.functional import procrustes
from dfmsd.runfolder import RunFolder
from dfmsd.types import LevelSpec

ASSETS = Path(__file__).resolve().parents[2] / "docs" / "assets"
BLUE, PALE, DARK = "#1f6feb", "#ddf4ff", "#57606a"
COLORS = plt.get_cmap("RdBu_r", 17)  # few enough for small files
FACTOR = "balance"
ROWS = {"student": 1.0, "teacher": 0.0}
"""Heights of the two detectors in the picture of the pairs."""
HALF = 0.17
"""Half of the height of a level there."""


def draw_pairing(out: Path) -> None:
    """Draw the levels of an FCOS and a Faster R-CNN over object size, and the pairs of two rules."""
    student, teacher = (build_detector(DetectorConfig(arch), ["object"]).levels for arch in ("fcos", "faster_rcnn"))
    bounds = [bound for level in (*student, *teacher) for bound in level.sizes or () if 0 < bound < math.inf]
    ends = (min(bounds) / 2, max(bounds) * 2)  # open ends as in match_ranges
    figure, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
    for height, levels in zip(ROWS.values(), (student, teacher), strict=True):
        for level in levels:
            lower, upper = closed(level, ends)
            axes.fill_between([lower, upper], height - HALF, height + HALF, facecolor=PALE, edgecolor="white", lw=2)
            name = f"{level.name.upper()}, stride {level.stride}"
            axes.text(math.sqrt(lower * upper), height, name, ha="center", va="center", fontsize=9)
    rules: list[tuple[Any, dict[str, Any]]] = [
        ("auto", {"color": BLUE, "lw": 3}),
        ("stride", {"color": DARK, "lw": 1.2, "ls": "--"}),
    ]
    for rule, style in rules:
        for number, pair in enumerate(pair_levels(student, teacher, rule)):
            centers = [math.sqrt(math.prod(closed(level, ends))) for level in pair]
            label = f"pairing: {rule}" if number == 0 else None
            axes.plot(centers, [ROWS["student"] - HALF, ROWS["teacher"] + HALF], **style, label=label)
    axes.set_xscale("log", base=2)
    ticks = [2**power for power in range(math.ceil(math.log2(ends[0])), math.floor(math.log2(ends[1])) + 1)]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlim(*ends)
    axes.set_ylim(-HALF - 0.03, 1 + HALF + 0.03)
    axes.set_yticks(list(ROWS.values()), ["student\nFCOS", "teacher\nFaster R-CNN"])
    axes.set_xlabel("object size in pixels (square root of the box's area)")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    save(figure, out)


def closed(level: LevelSpec, ends: tuple[float, float]) -> tuple[float, float]:
    """Return a level's object sizes with open ends closed."""
    assert level.sizes is not None
    return max(level.sizes[0], ends[0]), min(level.sizes[1], ends[1])


def draw_weighting(run: RunFolder, out: Path) -> None:
    """Draw the ratio of the teacher's unscaled gradient to the task's, and the factor, over the steps of a run."""
    config = run.read_config()
    with run.log_file.open(newline="") as file:
        rows = [(int(row["step"]), float(row[FACTOR])) for row in csv.DictReader(file)]
    steps, factors = zip(*[row for row in rows if row[1] != 1], strict=True)  # 1 until the first measurement
    target = float(config["balance"])
    ratios = [target / factor for factor in factors]
    figure, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
    lines: list[tuple[Any, dict[str, Any], str]] = [
        (ratios, {"color": DARK}, "teacher's gradient / task's"),
        (factors, {"color": BLUE, "lw": 2.5}, "factor"),
        ([target] * len(steps), {"color": BLUE, "ls": "--", "lw": 1.2}, f"their product, balance: {target:g}"),
    ]
    for values, style, label in lines:
        axes.plot(steps, values, label=label, **style)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("training step")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)
    save(figure, out)


def draw_basis(teacher: Path, reference: Path, data: str, image_size: int, levels: int, out: Path) -> None:
    """Draw the correlations of a teacher's channels with a reference's, before and after the rotation."""
    detectors = [load_detector(path) for path in (teacher, reference)]
    pairs = pair_levels(detectors[1].levels, detectors[0].levels)[:levels]
    moments = [LevelMoments(pair.teacher.channels, pair.student.channels) for pair in pairs]
    with torch.no_grad():
        for batch in CocoDataModule(DataConfig(root=data, image_size=image_size)).sample_batches(FIT_IMAGES):
            source, target = (detector.features(batch.images) for detector in detectors)
            for pair, moment in zip(pairs, moments, strict=True):
                moment.add(source[pair.teacher.name], target[pair.student.name])
    figure, axes = plt.subplots(1, 2 * levels, figsize=(9, 2.6), layout="constrained", squeeze=False)
    for place, (pair, moment) in enumerate(zip(pairs, moments, strict=True)):
        for side, (name, matrix) in enumerate(zip(("before", "after"), correlations(moment), strict=True)):
            panel = axes[0, 2 * place + side]
            image = panel.imshow(matrix, cmap=COLORS, vmin=-0.8, vmax=0.8, interpolation="none")
            panel.set_title(f"{name}: diagonal {matrix.diagonal().mean():.2f}", fontsize=10)
            panel.set_xlabel(f"reference, {pair.student.name.upper()}")
            panel.set_xticks([])
            panel.set_yticks([])
        axes[0, 2 * place].set_ylabel(f"teacher, {pair.teacher.name.upper()}")
    figure.colorbar(image, ax=axes, label="correlation", shrink=0.9, ticks=[-0.8, -0.4, 0, 0.4, 0.8])
    save(figure, out)


def correlations(moments: LevelMoments) -> tuple[Tensor, Tensor]:
    """Return the correlations ``C_T x C_N`` and ``C_N x C_N`` with the reference, before and after the rotation."""
    split, std = moments.split, moments.covariance.diagonal().clamp_min(0).sqrt() + EPS
    both = moments.covariance / torch.outer(std, std)
    before, rotation = both[:split, split:], procrustes(both[:split, split:])
    rotated = (rotation.T @ both[:split, :split] @ rotation).diagonal().clamp_min(0).sqrt() + EPS
    return before, rotation.T @ before / rotated[:, None]


def save(figure: Any, path: Path) -> None:
    """Write a picture whose bytes depend on its contents only."""
    plt.rcParams["svg.hashsalt"] = path.name
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    plt.close(figure)


def main() -> None:
    """Draw the pictures whose files are given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a run with `balance`")
    parser.add_argument("--teacher", type=Path, help="run folder of the teacher that is rotated")
    parser.add_argument("--reference", type=Path, help="run folder of the teacher that it is rotated into")
    parser.add_argument("--data", default="digits", help="data of the two teachers (default: %(default)s)")
    parser.add_argument("--image-size", type=int, default=128, help="in pixels (default: %(default)s)")
    parser.add_argument("--levels", type=int, default=2, help="levels to draw, finest first (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder of the pictures (default: docs/assets)")
    args = parser.parse_args()
    if bool(args.teacher) != bool(args.reference):
        parser.error("--teacher and --reference go together")
    plt.rcParams.update({"font.size": 11, "svg.fonttype": "none"})
    draw_pairing(args.out / "pairing.svg")
    if args.run:
        draw_weighting(RunFolder(args.run), args.out / "weighting.svg")
    if args.teacher and args.reference:
        draw_basis(args.teacher, args.reference, args.data, args.image_size, args.levels, args.out / "basis.svg")


if __name__ == "__main__":
    main()
