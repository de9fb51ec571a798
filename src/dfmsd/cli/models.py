"""The commands on one detector: measure it, use it, look into it, hand it on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jsonargparse

from dfmsd.data.config import DataConfig
from dfmsd.engine.configfile import command_parser

T = TypeVar("T")

# The commands import what they need themselves, as in `dfmsd.cli.main`.


def evaluate_parser() -> jsonargparse.ArgumentParser:
    """Flags of ``dfmsd evaluate``."""
    parser = _detector_parser("COCO metrics of a detector.")
    parser.add_argument("--data", type=str, required=True, help="folder in the COCO layout, or digits")
    _add_image_size(parser)
    parser.add_argument("--out", type=Path | None, default=None, help="write the metrics to this JSON file")
    return parser


def evaluate_command(values: Any) -> None:
    """Run ``dfmsd evaluate``."""
    from dfmsd.data import CocoDataModule
    from dfmsd.detectors import load_detector
    from dfmsd.evaluation.evaluate import evaluate
    from dfmsd.utils.device import default_device
    from dfmsd.utils.files import write_json

    detector = load_detector(values.model)
    data = CocoDataModule(DataConfig(root=values.data, image_size=values.image_size or detector.input_size))
    metrics = evaluate(detector, data.val_dataloader(), device=default_device())
    print(json.dumps(metrics, indent=2))
    if values.out:
        write_json(values.out, metrics)


def predict_parser() -> jsonargparse.ArgumentParser:
    """Flags of ``dfmsd predict``."""
    parser = _detector_parser("Images and videos with what a detector finds drawn on them, and a COCO file of it.")
    parser.add_argument("--out", type=Path, required=True, help="folder that is written into")
    parser.add_argument("--score", type=float, default=0.3, help="detections below are left out")
    _add_image_size(parser)
    parser.add_argument("images", type=str, nargs="+", help="files, or folders of them")
    return parser


def predict_command(values: Any) -> None:
    """Run ``dfmsd predict``."""
    from dfmsd.evaluation.predict import PREDICTIONS, predict

    print(predict(values.model, values.images, values.out, values.score, values.image_size))
    print(values.out / PREDICTIONS)


def export_parser() -> jsonargparse.ArgumentParser:
    """Flags of ``dfmsd export``."""
    parser = _detector_parser("A detector as a file of another runtime, compared there with the model on real images.")
    parser.add_argument("--format", choices=["onnx", "openvino", "executorch", "torch"], required=True)
    parser.add_argument("--out", type=Path | None, default=None, help="file to write; beside the model by default")
    parser.add_argument(
        "--images", type=str | None, default=None, help="folder of images or data set; that of the run by default"
    )
    parser.add_argument(
        "--image-size", type=int | None, default=None, help="side of the input; that of the run by default, else 256"
    )
    parser.add_argument("--int8", action="store_true", help="write a quantised ONNX file too, and measure its AP")
    return parser


def export_command(values: Any) -> None:
    """Run ``dfmsd export``."""
    from dfmsd.exporting.exporter import ExportOptions, export

    print(export(_options(ExportOptions, values)))


def visualize_parser() -> jsonargparse.ArgumentParser:
    """Flags of ``dfmsd visualize``."""
    parser = command_parser("Attention, masks and reconstruction error of a loss on every level, one PNG an image.")
    parser.add_argument("--model", type=str, required=True, help="the student; its run folder has all layers")
    parser.add_argument("--teacher", type=str, required=True, help="as in a config's `stages`")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("images", type=str, nargs="+", help="image files, or folders of them")
    return parser


def visualize_command(values: Any) -> None:
    """Run ``dfmsd visualize``."""
    from dfmsd.visualization import visualize

    for path in visualize(values.model, values.teacher, values.images, values.out):
        print(path)


def share_parser() -> jsonargparse.ArgumentParser:
    """Flags of ``dfmsd share``."""
    parser = command_parser("A finished run as a folder to hand on: weights, config, metrics and a model card.")
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--out", type=Path, required=True, help="folder that is made")
    parser.add_argument("--name", type=str | None, default=None, help="of the model; that of the folder by default")
    parser.add_argument("--dataset", type=str | None, default=None, help="name of the data; its folder's by default")
    parser.add_argument("--license", type=str | None, default=None, help="such as apache-2.0; none by default")
    parser.add_argument("--baseline", type=Path | None, default=None, help="run folder whose numbers stand beside")
    parser.add_argument("--push", type=str | None, default=None, help="upload to this <user>/<name> of Hugging Face")
    return parser


def share_command(values: Any) -> None:
    """Run ``dfmsd share``."""
    from dfmsd.sharing import ShareOptions, share

    print(share(_options(ShareOptions, values)))


def _detector_parser(description: str) -> jsonargparse.ArgumentParser:
    parser = command_parser(description)
    parser.add_argument("--model", type=str, required=True, help="run folder, student file or torchvision weight name")
    return parser


def _add_image_size(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument(
        "--image-size", type=int | None, default=None, help="longer side; that of the model's run by default, else 256"
    )


def _options(kind: Callable[..., T], values: Any) -> T:
    """Build a dataclass whose fields are flags of the same names."""
    return kind(**{name: values[name] for name in kind.__dataclass_fields__})  # type: ignore[attr-defined]
