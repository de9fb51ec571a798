"""An int8 file that keeps the model's AP: the layers that lose most stay in float32."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

from dfmsd.data.transforms import Sample
from dfmsd.detectors import Detector
from dfmsd.errors import DfmsdError
from dfmsd.evaluation.evaluate import Metrics, evaluate, percent
from dfmsd.exporting.agreement import agreement
from dfmsd.exporting.images import open_images, spread
from dfmsd.exporting.quantization import Layer, Quantizer
from dfmsd.types import Detections
from dfmsd.utils.console import console
from dfmsd.utils.shapes import frame_of

logger = logging.getLogger("dfmsd")

MAX_LOST_AP = 0.01
"""Files that lose more are refused; the search for layers ends at half of it."""
MIN_AGREEMENT = 0.8
"""The same without annotations; see `agreement`."""
KEPT = (1, 2, 4, 8, 16)
"""Numbers of layers in float32 to try."""
RANKING_IMAGES = 16
"""Number of images to find the layers with that lose most."""
AP_IMAGES = 1000
"""Maximum number of val images for AP."""


class Quantized(NamedTuple):
    """An int8 file and what it loses."""

    file: Path
    agreement: float
    """With the float32 file, 0..1."""
    before: Metrics | None
    """Of the float32 file on the val split; None without annotations."""
    after: Metrics | None
    """Of the int8 file."""
    layers: int
    """Number of layers that could be int8."""
    kept: tuple[str, ...]
    """Names of those that stayed in float32."""
    plain: Metrics | None = None
    """Of a file with all layers in int8."""

    @property
    def loss(self) -> float:
        """What it loses, as a share of what it may lose."""
        if self.before and self.after:
            return ((self.before["AP"] or 0.0) - (self.after["AP"] or 0.0)) / MAX_LOST_AP
        return (1 - self.agreement) / (1 - MIN_AGREEMENT)

    @property
    def measured(self) -> str:
        """AP and agreement as text."""
        agreed = f"agreement with float32 {percent(self.agreement)}"
        if self.before and self.after:
            return f"AP {percent(self.before['AP'])} in float32, {percent(self.after['AP'])} in int8; {agreed}"
        return agreed

    def __str__(self) -> str:
        """Format as two lines."""
        kept = f"; in float32: {', '.join(self.kept)}" if self.kept else ""
        return f"{self.measured}\n{self.layers - len(self.kept)} of {self.layers} layers in int8{kept}"


class Judge:
    """Measures int8 files against their float32 file.

    Args:
        exact: the float32 file.
        images: without annotations, each ``1 x 3 x side x side``.
        val: annotated images, if there are any.
    """

    def __init__(self, exact: Detector, images: Sequence[Tensor], val: DataLoader[Sample] | None) -> None:
        self.images, self.val = images, val
        self.expected = detect_all(exact, images)
        self.before = None if val is None else evaluate(exact, val, limit=AP_IMAGES)

    def measure(self, file: Path, exported: Detector, layers: int, kept: Sequence[Layer]) -> Quantized:
        """Measure an int8 file in which some layers stayed in float32."""
        found = agreement(self.expected, detect_all(exported, self.images))
        after = None if self.val is None else evaluate(exported, self.val, limit=AP_IMAGES)
        return Quantized(file, found, self.before, after, layers, tuple(layer.name for layer in kept))


def write_int8(
    file: Path, out: Path, load: Callable[[Path], Detector], judge: Judge, samples: Sequence[Path], side: int
) -> Quantized:
    """Write an int8 file; where it loses too much, with the most sensitive layers in float32.

    Args:
        file: in float32.
        out: file to write.
        load: opens a file.
        judge: measures int8 files.
        samples: images to calibrate with.
        side: of the square input, in pixels.

    Raises:
        DfmsdError: the int8 file loses too much.
    """
    quantizer = Quantizer(file, open_images(samples, side))

    def attempt(kept: Sequence[Layer]) -> Quantized:
        quantizer.write(out, [layer for layer in quantizer.layers if layer not in kept])
        return judge.measure(out, load(out), len(quantizer.layers), kept)

    plain = best = attempt(())
    if best.loss > 0.5:
        logger.info("int8: %s; looking for the layers that lose most", plain.measured)
        images = list(open_images(spread(samples, RANKING_IMAGES), side))
        ranked = rank_layers(quantizer, out, load, images)
        for count in KEPT:
            best = min(best, attempt(ranked[:count]), key=lambda found: found.loss)
            if best.loss <= 0.5:
                break
        quantizer.write(out, [layer for layer in quantizer.layers if layer.name not in best.kept])
    if not best.loss <= 1:
        raise DfmsdError(f"int8: {_refusal(best)}; no file was written. Export without `int8`, or train longer")
    return best._replace(plain=plain.after)


def rank_layers(
    quantizer: Quantizer, scratch: Path, load: Callable[[Path], Detector], images: Sequence[Tensor]
) -> list[Layer]:
    """Order the layers by what is lost with one of them alone in int8, most first."""
    expected = detect_all(load(quantizer.file), images)
    found = []
    for layer in track(quantizer.layers, "layers", console=console, transient=True):
        quantizer.write(scratch, [layer])
        found.append(agreement(expected, detect_all(load(scratch), images)))
    order = sorted(range(len(found)), key=found.__getitem__)
    return [quantizer.layers[index] for index in order]


def detect_all(detector: Detector, images: Sequence[Tensor]) -> list[Detections]:
    """Detect in images that fill the input, one by one."""
    return [detector.detect(image, [frame_of(image)])[0] for image in images]


def _refusal(found: Quantized) -> str:
    kept = f" with {len(found.kept)} of {found.layers} layers in float32" if found.kept else ""
    if found.before and found.after:
        before, after = found.before["AP"], found.after["AP"]
        return (
            f"the file loses {percent((before or 0.0) - (after or 0.0))} AP ({percent(before)} to {percent(after)})"
            f"{kept}, more than {percent(MAX_LOST_AP)}"
        )
    return f"the file agrees with the model to {percent(found.agreement)}%{kept}, less than {percent(MIN_AGREEMENT)}%"
