"""Results of an export, and the JSON description written next to the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from dfmsd.detectors import Detector
from dfmsd.exporting.dense import DENSE_OUTPUTS, dense_decoder
from dfmsd.exporting.formats import Format, takes_batches
from dfmsd.exporting.graph import INPUT, DetectionGraph
from dfmsd.exporting.int8 import Quantized
from dfmsd.exporting.verify import Difference


class Agreement(NamedTuple):
    """What the script of a bundle finds, compared with the model."""

    images: int
    objects: int
    """That the model finds in them."""
    again: int
    """Those that the script finds, too."""
    new: int
    """Others that the script finds."""

    def __str__(self) -> str:
        """Format as one line."""
        return (
            f"infer.py, {self.images} images: {self.again} of {self.objects} objects of the model found again,"
            f" {self.new} others"
        )


class Exported(NamedTuple):
    """The exported file and its comparison with the model."""

    file: Path
    images: int
    """Number of images compared."""
    side: int
    """Of the square input, in pixels."""
    difference: Difference | None
    """None if this machine cannot run the file."""
    latency: dict[str, float]
    """Median time of detection in one image in milliseconds, for the model and the files."""
    detector: Detector
    """The model."""
    quantized: Quantized | None = None
    script: Agreement | None = None
    """Of a bundle."""
    inspected: str = ""
    """What was compared of a file that this machine cannot run."""

    def __str__(self) -> str:
        """Format as a few lines."""
        if self.difference is None:
            return f"{self.file}\nnot run on this machine: {self.inspected}"
        boxes, scores, count = self.difference
        lines = [
            str(self.file),
            f"{self.images} images, {count} detections: largest difference {boxes:.1e} of the side in boxes "
            f"({boxes * self.side:.1e} pixels), {scores:.1e} in scores",
            f"one image, median: {', '.join(f'{name} {ms:.1f} ms' for name, ms in self.latency.items())}",
        ]
        if self.quantized:
            lines += [str(self.quantized.file), str(self.quantized)]
        if self.script:
            lines.append(str(self.script))
        return "\n".join(lines)


def describe(name: str, form: Format, graph: DetectionGraph, result: Exported) -> dict[str, Any]:
    """Return the description of a file: everything needed to run it without dfmsd.

    Args:
        name: of the format.
        form: the format.
        graph: of the model.
        result: of the export.
    """
    post, quantized = graph.post_processor, result.quantized
    return {
        "format": name,
        "input": {INPUT: ["N" if takes_batches(form, graph) else 1, 3, graph.side, graph.side]},
        "preprocess": {
            "size": graph.side,
            "resize": "longer side to `size`, bilinear, antialiased",
            "padding": [0, 0, 0],
            "padding_at": "right and bottom",
            "channels": "RGB",
            "divide_by": 255,
            "mean": [0.0, 0.0, 0.0],
            "std": [1.0, 1.0, 1.0],
        },
        "outputs": list(form.outputs),
        "class_names": list(result.detector.class_names),
        "suppression": {
            "inside": form.whole,
            "iou": post.nms_threshold if post.has_nms else None,
            "above": post.score_threshold,
            "per_image": post.per_image,
            "class_of": post.class_of.tolist(),
            **(_selection(graph) if form.outputs == DENSE_OUTPUTS else {}),
        },
        "checked": _checked(result),
        "int8": {**quantized._asdict(), "file": quantized.file.name} if quantized else None,
    }


def _checked(result: Exported) -> dict[str, Any]:
    if result.difference is None:
        return {"run": False, "inspected": result.inspected}
    return {"run": True, "images": result.images, **result.difference._asdict(), "latency_ms": result.latency}


def _selection(graph: DetectionGraph) -> dict[str, Any]:
    """Return how candidates are selected from all boxes and scores, and the class of each column of scores."""
    decoder = dense_decoder(graph)
    return {
        "groups": decoder.groups,
        "candidates": decoder.candidates,
        "by_class": decoder.by_class,
        "class_of": graph.post_processor.class_of[decoder.first_label :].tolist(),
    }
