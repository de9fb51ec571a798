"""Commands on detectors, finished runs and data sets, from evaluate to convert, and lists of names."""

from __future__ import annotations

import json
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from dfmsd.api import models as api
from dfmsd.detectors.base import SHOWN_SCORE
from dfmsd.engine.configfile import command_parser
from dfmsd.utils.console import results_console


def evaluate_parser() -> ArgumentParser:
    """Build the parser of ``dfmsd evaluate``."""
    parser = _model_parser("Compute the COCO metrics of a detector.")
    parser.add_argument("--data", type=str, required=True, help="data set folder, or digits")
    parser.add_argument("--split", type=str, default="val", help="split to evaluate on, such as test")
    _add_image_size(parser)
    parser.add_argument("--out", type=Path | None, default=None, help="JSON file to write the metrics to")
    return parser


def evaluate_command(values: Namespace) -> None:
    """Run ``dfmsd evaluate``."""
    metrics = api.evaluate(values.model, values.data, split=values.split, image_size=values.image_size, out=values.out)
    print(json.dumps(metrics, indent=2))


def predict_parser() -> ArgumentParser:
    """Build the parser of ``dfmsd predict``."""
    parser = _model_parser("Draw a detector's detections into images and videos, and write them as one COCO file.")
    parser.add_argument("--out", type=Path | None, default=None, help="folder to write to")
    parser.add_argument(
        "--as-annotations",
        type=Path | None,
        default=None,
        help="COCO annotation file of the images to create, in place of --out",
    )
    parser.add_argument("--score", type=float, default=SHOWN_SCORE, help="lowest score of a detection to keep")
    _add_image_size(parser)
    tiles = "side of the tiles that larger images are cut into, in pixels; each is resized to --image-size"
    parser.add_argument("--tiles", type=int | None, default=None, help=tiles)
    overlap = "share of a tile that neighbors have in common at least; 0.2 by default"
    parser.add_argument("--overlap", type=float | None, default=None, help=overlap)
    track = "give the objects of a video ids that stay from frame to frame; videos only"
    parser.add_argument("--track", action="store_true", help=track)
    _add_images(parser, "image and video files, or folders of them")
    return parser


def predict_command(values: Namespace) -> None:
    """Run ``dfmsd predict``."""
    from dfmsd.evaluation.predict import PREDICTIONS

    file = values.as_annotations
    settings = {name: values[name] for name in ("score", "image_size", "tiles", "overlap", "track", "as_annotations")}
    print(api.predict(values.model, values.images, values.out, **settings))
    print(values.out / PREDICTIONS if file is None else file)


def export_parser() -> ArgumentParser:
    """Build the parser of ``dfmsd export``."""
    parser = _model_parser("Export a detector for another runtime, and compare it there with the original.")
    parser.add_argument(
        "--format", choices=["onnx", "openvino", "ncnn", "litert", "coreml", "executorch", "torch"], default="onnx"
    )
    parser.add_argument("--out", type=Path | None, default=None, help="file to write; next to the model by default")
    bundle = "folder to create in place of a file, with all that is needed to run it without dfmsd"
    parser.add_argument("--bundle", type=Path | None, default=None, help=bundle)
    web = "folder to create in place of a file, with a page that runs it in the browser"
    parser.add_argument("--web", type=Path | None, default=None, help=web)
    runtime = "folder with the files of onnxruntime-web for --web; downloaded once with npm by default"
    parser.add_argument("--runtime", type=Path | None, default=None, help=runtime)
    parser.add_argument(
        "--images",
        type=str | None,
        default=None,
        help="folder of images or data set to compare on; the data set of the model's run by default",
    )
    _add_image_size(parser, "side of the square input")
    parser.add_argument("--int8", action="store_true", help="write a quantized ONNX file as well, and measure its AP")
    parser.add_argument(
        "--nms",
        choices=["inside", "outside"],
        help="non-maximum suppression inside or outside of the file; inside by default where the format can",
    )
    return parser


def export_command(values: Namespace) -> None:
    """Run ``dfmsd export``."""
    print(
        api.export(
            values.model,
            values.format,
            out=values.out,
            bundle=values.bundle,
            web=values.web,
            runtime=values.runtime,
            images=values.images,
            image_size=values.image_size,
            int8=values.int8,
            nms=values.nms,
        )
    )
    if values.web is not None:
        print(f"python -m http.server --directory {values.web}  # browsers do not run the page from file://")


def students_parser() -> ArgumentParser:
    """Build the parser of ``dfmsd students``."""
    parser = command_parser("Measure the size and speed of possible students on this machine.")
    parser.add_argument("students", type=str, nargs="*", help="names arch/backbone; a dozen small ones by default")
    parser.add_argument("--image-size", type=int, default=320, help="side of the square input in pixels")
    parser.add_argument(
        "--runtime",
        choices=["onnx", "openvino", "ncnn", "executorch"],
        help="run the exported students there as well; PyTorch alone by default",
    )
    parser.add_argument("--classes", type=int, default=80, help="number of classes")
    parser.add_argument("--json", type=Path | None, default=None, help="file to write as well")
    return parser


def students_command(values: Namespace) -> None:
    """Run ``dfmsd students``."""
    from dfmsd.exporting.students import print_students

    costs = api.measure_students(
        values.students or None,
        image_size=values.image_size,
        runtime=values.runtime,
        classes=values.classes,
        json=values.json,
    )
    print_students(costs, values.image_size, results_console())


def visualize_parser() -> ArgumentParser:
    """Build the parser of ``dfmsd visualize``."""
    parser = command_parser("Draw a distillation's attention, masks and errors on every level, one PNG per image.")
    parser.add_argument("--model", type=str, required=True, help="the student's run folder, which has all its layers")
    parser.add_argument("--teacher", type=str, required=True, help="a reference, as in the `stages` of a config")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    _add_images(parser, "image files, or folders of them")
    return parser


def visualize_command(values: Namespace) -> None:
    """Run ``dfmsd visualize``."""
    for path in api.visualize(values.model, values.teacher, values.images, values.out):
        print(path)


def report_parser() -> ArgumentParser:
    """Build the parser of ``dfmsd report``."""
    parser = command_parser("Write the report of a run, of a folder of runs or of a comparison.")
    parser.add_argument("run", type=Path, help="run folder, folder whose subfolders are runs, or --out of `compare`")
    parser.add_argument("--baseline", type=Path | None, default=None, help="run folder to compare the run with")
    parser.add_argument("--teacher", type=str, nargs="+", default=[], help="teachers; those of the run by default")
    parser.add_argument("--images", type=int, default=200, help="maximum number of validation images to examine")
    return parser


def report_command(values: Namespace) -> None:
    """Run ``dfmsd report``."""
    for page in api.report(values.run, baseline=values.baseline, teacher=values.teacher, images=values.images):
        print(page)


def share_parser() -> ArgumentParser:
    """Build the parser of ``dfmsd share``."""
    parser = command_parser("Package a finished run for others: weights, config, metrics and a model card.")
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--out", type=Path, required=True, help="folder to create")
    parser.add_argument("--name", type=str | None, default=None, help="model name; that of the folder by default")
    parser.add_argument("--dataset", type=str | None, default=None, help="data set name; that of its folder by default")
    parser.add_argument("--license", type=str | None, default=None, help="such as apache-2.0; none by default")
    parser.add_argument("--baseline", type=Path | None, default=None, help="run folder to list for comparison")
    parser.add_argument("--push", type=str | None, default=None, help="upload to this <user>/<name> on Hugging Face")
    return parser


def share_command(values: Namespace) -> None:
    """Run ``dfmsd share``."""
    print(
        api.share(
            values.run,
            values.out,
            name=values.name,
            dataset=values.dataset,
            license=values.license,
            baseline=values.baseline,
            push=values.push,
        )
    )


def data_parser() -> ArgumentParser:
    """Build the parser of ``dfmsd data``."""
    parser = command_parser("Say what a data set holds: layout, splits, classes, object sizes, and what looks wrong.")
    parser.add_argument("root", type=str, help="data set folder, or digits")
    parser.add_argument("--image-size", type=int, default=256, help="longer side that a run resizes images to")
    parser.add_argument("--out", type=Path | None, default=None, help="folder for a page with images and their boxes")
    return parser


def data_command(values: Namespace) -> None:
    """Run ``dfmsd data``."""
    from dfmsd.inspection.facts import refuse_unreadable
    from dfmsd.inspection.page import PAGE
    from dfmsd.inspection.tables import print_facts

    facts = api.inspect_data(values.root, image_size=values.image_size, out=values.out)
    print_facts(facts, results_console())
    if values.out is not None:
        print(values.out / PAGE)
    refuse_unreadable(facts)


def convert_parser() -> ArgumentParser:
    """Build the parser of ``dfmsd convert``."""
    parser = command_parser("Write a data set in the format of COCO, YOLO or Pascal VOC, or in tar files.")
    parser.add_argument("source", type=Path, help="data set folder; its layout is recognized")
    parser.add_argument("--to", choices=["coco", "yolo", "voc", "shards"], default="coco", help="format to write")
    parser.add_argument("--out", type=Path, required=True, help="folder to create; images are copied")
    parser.add_argument("--skip-broken", action="store_true", help="leave out images that cannot be decoded")
    return parser


def convert_command(values: Namespace) -> None:
    """Run ``dfmsd convert``."""
    counts = api.convert(values.source, values.out, to=values.to, skip_broken=values.skip_broken)
    for split, (images, boxes) in counts.items():
        print(f"{split}: {images} images, {boxes} boxes")


def list_parser() -> ArgumentParser:
    """Build the parser of ``dfmsd list``."""
    parser = command_parser("List the names of losses, detector architectures or backbones.")
    parser.add_argument("what", choices=["losses", "detectors", "backbones"])
    return parser


def list_command(values: Namespace) -> None:
    """Run ``dfmsd list``."""
    print("\n".join(_names(values.what)))


def _names(what: str) -> list[str]:
    if what == "losses":
        from dfmsd.losses import LOSSES

        return sorted(LOSSES)

    from dfmsd.detectors import DETECTORS, list_backbones, torchvision_archs

    return list_backbones() if what == "backbones" else [*sorted(DETECTORS), *torchvision_archs()]


def _model_parser(description: str) -> ArgumentParser:
    parser = command_parser(description)
    parser.add_argument("--model", type=str, required=True, help="run folder, weights file or torchvision weight name")
    return parser


def _add_image_size(parser: ArgumentParser, meaning: str = "longer side") -> None:
    default = "that of the model's training by default, else 256"
    parser.add_argument("--image-size", type=int | None, default=None, help=f"{meaning} in pixels; {default}")


def _add_images(parser: ArgumentParser, help: str) -> None:
    parser.add_argument("images", type=str, nargs="+", help=help)
