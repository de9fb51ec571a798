"""Size and speed of possible students, measured on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from dfmsd.detectors import Detector, DetectorConfig, build_detector
from dfmsd.detectors.config import DENSE_ARCHS, OWN_ARCHS
from dfmsd.errors import DfmsdError, suggest
from dfmsd.estimation.flops import count
from dfmsd.estimation.timing import time_in_turns
from dfmsd.exporting.choice import FORMATS
from dfmsd.exporting.graph import DetectionGraph
from dfmsd.exporting.verify import read_exported
from dfmsd.utils.console import console
from dfmsd.utils.extras import check_extra

PYTORCH = "pytorch"
RUNTIMES = ("onnx", "openvino", "ncnn", "executorch")
"""Formats that another program than PyTorch runs."""
BACKBONES = ("mobilenetv3_small_050", "mobilenetv3_small_100", "tf_efficientnet_lite0")
CANDIDATES = tuple(f"{arch}/{backbone}" for backbone in BACKBONES for arch in ("ssdlite", "fcos", "retinanet", "gfl"))
"""Students that are measured where none is named."""
HEAD_CONVS = 2
"""Convolutions of the head of a dense student, as in the tables of results."""
SECONDS = 1.0
"""Timing budget per student and runtime."""


@dataclass(frozen=True)
class StudentCost:
    """Size of a student, and its speed in one image.

    Attributes:
        student: its name, ``arch/backbone``.
        parameters: number of weights.
        flops: of convolutions and matrix products, 2 per multiply-add.
        latency: median time from pixels to boxes in milliseconds, by runtime.
        file_bytes: size of the exported file; None without a runtime.
    """

    student: str
    parameters: int
    flops: int
    latency: Mapping[str, float]
    file_bytes: int | None = None


def measure_students(
    students: Sequence[str] = CANDIDATES,
    *,
    image_size: int = 320,
    runtime: str | None = None,
    classes: int = 80,
    seconds: float = SECONDS,
) -> list[StudentCost]:
    """Measure students with random weights in one process, taking turns.

    A detector with random weights finds next to nothing, so the time of non-maximum suppression is hardly included.

    Args:
        students: names ``arch/backbone``; the pyramid has 64 channels, and a dense head two convolutions.
        image_size: side of the square input, in pixels.
        runtime: one of `RUNTIMES`, in which the students run as well, with as many threads as PyTorch.
        classes: number of classes.
        seconds: timing budget per student and runtime.

    Returns:
        One entry per student, fastest first.

    Raises:
        DfmsdError: an unknown name or runtime, an input that a student does not take, or a missing extra.
    """
    if runtime is not None:
        if runtime not in RUNTIMES:
            raise DfmsdError(f"`runtime`: expected {', '.join(RUNTIMES)}, got {runtime!r}")
        check_extra(f"`runtime` {runtime}", FORMATS[runtime].packages, FORMATS[runtime].extra)
    if classes < 1:
        raise DfmsdError(f"`classes` must be at least 1, got {classes}")
    names = [f"class {number}" for number in range(classes)]
    configs = {student: student_config(student) for student in students}
    detectors = {student: build_detector(config, names).eval() for student, config in configs.items()}
    graphs = {student: DetectionGraph(detector, image_size).eval() for student, detector in detectors.items()}
    image = torch.rand(1, 3, image_size, image_size)
    with ExitStack() as stack, torch.no_grad():
        exported: dict[str, Detector] = {}
        sizes: dict[str, int] = {}
        if runtime is not None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dfmsd-students-")))
            for number, (student, graph) in enumerate(track(graphs.items(), runtime, console=console, transient=True)):
                exported[student], sizes[student] = _export(graph, runtime, folder / str(number))
        runtimes = {PYTORCH: detectors} | ({runtime: exported} if runtime else {})
        calls = {
            (student, name): partial(of_runtime[student].detect, image, [(image_size, image_size)])
            for name, of_runtime in runtimes.items()
            for student in detectors
        }
        flops = {student: count(calls[student, PYTORCH], detector).forward for student, detector in detectors.items()}
        ms = time_in_turns(calls, seconds * len(calls))
    measured = [
        StudentCost(
            student,
            sum(parameter.numel() for parameter in detector.parameters()),
            flops[student],
            {name: ms[student, name] for name in runtimes},
            sizes.get(student),
        )
        for student, detector in detectors.items()
    ]
    return sorted(measured, key=lambda cost: cost.latency[runtime or PYTORCH])


def print_students(costs: Sequence[StudentCost], image_size: int, console: Console) -> None:
    """Print a table, with times relative to the first, fastest student's as well."""
    runtimes = list(costs[0].latency) if costs else []
    table = Table("student", Column("parameters", justify="right"), Column("GFLOPs", justify="right"))
    table.title = f"{image_size} x {image_size} pixels, {torch.get_num_threads()} thread(s)"
    for name in runtimes:
        table.add_column(f"{name}, ms", justify="right")
        table.add_column("relative", justify="right")
    if len(runtimes) > 1:
        table.add_column("file, MB", justify="right")
    for cost in costs:
        times = [
            cell
            for name in runtimes
            for cell in (f"{cost.latency[name]:.1f}", f"{cost.latency[name] / costs[0].latency[name]:.2f}")
        ]
        size = [] if cost.file_bytes is None else [f"{cost.file_bytes / 1e6:.1f}"]
        table.add_row(cost.student, f"{cost.parameters:,}", f"{cost.flops / 1e9:.2f}", *times, *size)
    console.print(table)


def student_config(name: str) -> DetectorConfig:
    """Return the config of a student's name.

    Args:
        name: ``arch/backbone``.

    Raises:
        DfmsdError: it has another form, or the architecture or the backbone is unknown.
    """
    arch, _, backbone = name.partition("/")
    if arch not in OWN_ARCHS or not backbone:
        known = f"the architectures are {', '.join(OWN_ARCHS)}"
        hint = known if arch in OWN_ARCHS else suggest(arch, OWN_ARCHS, known)
        raise DfmsdError(f"students: expected arch/backbone such as {CANDIDATES[0]}, got {name!r}; {hint}")
    if arch in DENSE_ARCHS:
        return DetectorConfig(arch, backbone, head_convs=HEAD_CONVS)
    return DetectorConfig(arch, backbone)


def _export(graph: DetectionGraph, runtime: str, folder: Path) -> tuple[Detector, int]:
    """Export a student; return it in its runtime, and the size of its files."""
    form = FORMATS[runtime]
    folder.mkdir()
    file = folder / f"student{form.suffix}"
    form.write(graph, file)
    return read_exported(file, form, graph), sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
