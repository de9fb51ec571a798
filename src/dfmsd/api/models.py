"""Functions on detectors, finished runs and data sets, from evaluate to convert."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dfmsd.api.home import expands_home
from dfmsd.data import DataConfig
from dfmsd.detectors import Detector
from dfmsd.detectors.base import SHOWN_SCORE
from dfmsd.errors import DfmsdError
from dfmsd.utils.coerce import coerce

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader

    from dfmsd.data import DetectionDataset
    from dfmsd.evaluation.evaluate import Metrics
    from dfmsd.evaluation.recording import Speed
    from dfmsd.exporting.results import Exported
    from dfmsd.exporting.students import StudentCost
    from dfmsd.inspection.facts import DataFacts

logger = logging.getLogger("dfmsd")

# Each function imports what it needs itself, as in `dfmsd.api.runs`.


@expands_home
def evaluate(
    model: Detector | str | Path,
    data: str | Path | DataConfig | DetectionDataset | DataLoader[Any],
    *,
    split: str = "val",
    image_size: int | None = None,
    batch_size: int = 16,
    limit: int | None = None,
    device: torch.device | str | None = None,
    amp: torch.dtype | None = None,
    out: str | Path | None = None,
) -> Metrics:
    """Compute the COCO metrics of a detector on one split of a data set; the others are not opened.

    The detector's classes are matched to those of the data set by name. The objects of a class
    that it lacks count as missed, and a warning names the class.

    Args:
        model: a detector, or a reference such as a run folder; see `load_detector`.
        data: data set folder, ``"digits"`` or a `DataConfig`; or a data set without augmentation, or its loader,
            which is used as a whole.
        split: ``val``, ``test`` or another split of the folder or `DataConfig`.
        image_size: longer side in pixels, instead of that of a `DataConfig`; with a folder, None uses that of the
            model's training, else 256.
        batch_size: images in a batch; a loader has its own.
        limit: evaluate the first ``limit`` images only.
        device: where to run; None uses the GPU if there is one.
        amp: autocast to this dtype; None computes in float32.
        out: JSON file to write the metrics to.

    Returns:
        ``AP``, ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl``, each in 0..1, and ``per_class``. None stands for a
        metric without any object to measure it on.

    Raises:
        DfmsdError: unknown model or data, no common class, or augmented data.
    """
    from dfmsd.data.loading import split_loader
    from dfmsd.evaluation import evaluate as evaluation
    from dfmsd.utils.device import read_device
    from dfmsd.utils.files import check_output, to_json, write_output

    if out is not None:  # before hours of work that would be lost
        check_output(_path(out, "out"))
    limit = coerce(limit, int | None, "limit")
    detector = _detector(model)
    images: Any = data
    if isinstance(data, str | Path):
        data = DataConfig(root=str(data), image_size=detector.choose_size(image_size), batch_size=batch_size)
    elif isinstance(data, DataConfig) and image_size is not None:
        data = replace(data, image_size=image_size)
    elif image_size is not None:
        raise DfmsdError("image_size: a data set or a loader has its own; leave it out, or pass the folder of the data")
    if isinstance(data, DataConfig):
        if image_size is None and detector.image_size not in (None, data.image_size):
            logger.warning("evaluating at %d pixels a model trained at %d", data.image_size, detector.image_size)
        images = split_loader(data, split)
    device = read_device(device)
    evaluation.warn_of_lacking_classes(detector.class_names, images)
    metrics = evaluation.evaluate(detector, images, limit=limit, batch_size=batch_size, device=device, amp=amp)
    if out is not None:
        write_output(Path(out), to_json(metrics))
    return metrics


@expands_home
def predict(
    model: Detector | str | Path,
    images: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    score: float = SHOWN_SCORE,
    image_size: int | None = None,
    tiles: int | None = None,
    overlap: float | None = None,
    track: bool = False,
    as_annotations: str | Path | None = None,
) -> Speed:
    """Draw a detector's detections into images and videos, or write them as the annotations of a data set.

    Args:
        model: a detector, or a reference such as a run folder; see `load_detector`.
        images: image and video files, or folders of them.
        out: folder for the drawn files and ``predictions.json``, a COCO file.
        score: lowest score of a detection to keep, 0..1.
        image_size: longer side in pixels; None uses that of the model's training, else 256.
        tiles: side of the tiles that larger images are cut into, in pixels; each is resized to ``image_size``.
        overlap: share of a tile that neighbors have in common at least, from 0 to below 1; None is 0.2.
        track: give the objects of a video ids that stay from frame to frame; for videos only.
        as_annotations: COCO file to create in place of ``out``, for images only.

    Returns:
        The number of images, the median time per image and the total time.

    Raises:
        DfmsdError: a file is missing or cannot be read, or would be overwritten by its own drawing; ``as_annotations``
            exists; not exactly one of it and ``out`` is given; or an image is to be tracked.
    """
    from dfmsd.evaluation import annotate
    from dfmsd.evaluation import predict as prediction

    if (out is None) == (as_annotations is None):
        raise DfmsdError("pass either `out`, a folder for drawings, or `as_annotations`, a COCO file to create")
    detector = _model(model)
    if as_annotations is not None:
        if track:
            raise DfmsdError("`track` follows objects through a video, but `as_annotations` is for images; use `out`")
        return annotate.annotate(
            detector, _listed(images), _path(as_annotations, "as_annotations"), score, image_size, tiles, overlap
        )
    return prediction.predict(detector, _listed(images), _path(out, "out"), score, image_size, tiles, overlap, track)


@expands_home
def export(
    model: str | Path,
    format: Literal["onnx", "openvino", "ncnn", "litert", "coreml", "executorch", "torch"] = "onnx",
    *,
    out: str | Path | None = None,
    bundle: str | Path | None = None,
    web: str | Path | None = None,
    runtime: str | Path | None = None,
    images: str | Path | None = None,
    image_size: int | None = None,
    int8: bool = False,
    nms: Literal["inside", "outside"] | None = None,
) -> Exported:
    """Export a detector for another runtime, and compare it there with the original on real images.

    Args:
        model: a reference such as a run folder; see `load_detector`.
        format: target format.
        out: file to write; None writes next to the model.
        bundle: folder to create in place of a file, with everything needed to run it without dfmsd: a script, settings,
            class names, and one of the images with the boxes to expect; for onnx, openvino, ncnn and litert.
        web: folder to create in place of a file, with a page that runs the model in the browser; for onnx.
        runtime: folder with the files of onnxruntime-web for ``web``; None downloads them once with npm.
        images: folder of images or of a data set to compare on; None uses the data set of the model's run.
        image_size: side of the square input in pixels; None uses that of the model's training, else 256.
        int8: write a quantized ONNX file as well, and measure its AP.
        nms: non-maximum suppression inside or outside of the file; None for inside where the format can.

    Returns:
        The file, the largest differences and the latencies.

    Raises:
        DfmsdError: an extra is missing, the model cannot be exported, the exported file differs from it, or the folder
            exists.
    """
    from dfmsd.exporting.bundle import export_bundle
    from dfmsd.exporting.exporter import export
    from dfmsd.exporting.web import export_web

    if sum(target is not None for target in (out, bundle, web)) > 1:
        raise DfmsdError("`out` names a file, `bundle` and `web` a folder with it; pass one of them")
    if runtime is not None and web is None:
        raise DfmsdError("`runtime`: only for `web`, whose page needs it")
    images = coerce(images, str | None, "images")
    model = _reference(model, "model")
    for name, path in (("out", out), ("bundle", bundle), ("web", web), ("runtime", runtime)):
        if path is not None:
            _reference(path, name)
    if web is not None:
        if int8:
            raise DfmsdError("`int8`: not for `web`, whose page runs the float32 file")
        return export_web(model, web, format, runtime=runtime, images=images, image_size=image_size, nms=nms)
    if bundle is not None:
        return export_bundle(model, bundle, format, images=images, image_size=image_size, int8=int8, nms=nms)
    return export(model, format, out=out, images=images, image_size=image_size, int8=int8, nms=nms)


@expands_home
def measure_students(
    students: Sequence[str] | None = None,
    *,
    image_size: int = 320,
    runtime: Literal["onnx", "openvino", "ncnn", "executorch"] | None = None,
    classes: int = 80,
    json: str | Path | None = None,
) -> list[StudentCost]:
    """Measure the size and speed of possible students on this machine, with random weights.

    The students take turns in one process, with as many threads as PyTorch uses.

    Args:
        students: names ``arch/backbone``, such as ``fcos/mobilenetv3_small_050``; None measures a dozen small ones.
        image_size: side of the square input in pixels.
        runtime: runs the exported students as well; None times PyTorch alone.
        classes: number of classes.
        json: file to write as well; None writes none.

    Returns:
        One entry per student, fastest first.

    Raises:
        DfmsdError: an unknown name, an input that a student does not take, or a missing extra.
    """
    from dfmsd.exporting import students as room
    from dfmsd.utils.files import check_output, to_json, write_output

    names = room.CANDIDATES if students is None else coerce(students, list[str], "students")
    if json is not None:
        check_output(_path(json, "json"), "`json`")
    costs = room.measure_students(names, image_size=image_size, runtime=runtime, classes=classes)
    if json is not None:
        write_output(Path(json), to_json([asdict(cost) for cost in costs]))
    return costs


@expands_home
def visualize(
    model: str | Path, teacher: str | Path, images: str | Path | Sequence[str | Path], out: str | Path
) -> list[Path]:
    """Draw attention, masks and reconstruction errors of a distillation on every pyramid level, one PNG per image.

    Args:
        model: the student; its run folder contains the training-only layers.
        teacher: a reference; see `StageConfig`.
        images: image files, or folders of them.
        out: folder for the pictures.

    Returns:
        The files, the contact sheet last.

    Raises:
        DfmsdError: unknown detector or image, or student and teacher do not fit.
    """
    from dfmsd.visualization import visualize as draw

    references = _reference(model, "model"), _reference(teacher, "teacher")
    return draw(*references, _listed(images), _path(out, "out"))


@expands_home
def report(
    run: str | Path,
    *,
    baseline: str | Path | None = None,
    teacher: str | Path | Sequence[str | Path] = (),
    images: int = 200,
) -> list[Path]:
    """Write the report of a run, of a folder of runs or of a comparison, with sample images and costs.

    Args:
        run: a run folder, a folder whose subfolders are runs, or the output folder of `compare`.
        baseline: run folder to compare the run with.
        teacher: references of the teachers; none uses those of the run.
        images: maximum number of validation images to examine.

    Returns:
        The HTML files: one, or one for each pair of a comparison.

    Raises:
        DfmsdError: no run there, or an argument that does not fit it.
    """
    from dfmsd import reporting
    from dfmsd.comparison.tables import rewrite_tables

    folder, teachers = _path(run, "run"), _listed(teacher, "teacher")
    other = None if baseline is None else _path(baseline, "baseline")
    pages = [] if other or teachers else rewrite_tables(folder)
    return pages or [reporting.report(folder, other, teachers, images)]


@expands_home
def share(
    run: str | Path,
    out: str | Path,
    *,
    name: str | None = None,
    dataset: str | None = None,
    license: str | None = None,
    baseline: str | Path | None = None,
    push: str | None = None,
) -> Path:
    """Package a finished run for others: weights, config, metrics and a model card.

    Args:
        run: run folder.
        out: folder to create.
        name: model name; None uses that of the folder.
        dataset: data set name; None uses that of its folder.
        license: license id such as ``apache-2.0``; None states no license.
        baseline: run folder whose metrics the card lists for comparison.
        push: repository ``<user>/<name>`` of the Hugging Face hub to upload to.

    Returns:
        The model card.

    Raises:
        DfmsdError: the run is not finished, ``out`` is not empty, or the upload failed.
    """
    from dfmsd import sharing

    run, out = _path(run, "run"), _path(out, "out")
    baseline = None if baseline is None else _path(baseline, "baseline")
    return sharing.share(run, out, name=name, dataset=dataset, license=license, baseline=baseline, push=push)


@expands_home
def inspect_data(
    data: str | Path | DataConfig, *, image_size: int | None = None, out: str | Path | None = None
) -> DataFacts:
    """Say what a data set holds, as ``dfmsd data`` does: layout, splits, classes, object sizes, and what looks wrong.

    Args:
        data: data set folder, ``"digits"`` or a `DataConfig`.
        image_size: longer side that a run resizes images to; None is 256, or that of the `DataConfig`.
        out: folder for a page with images and their boxes, and the same images as PNG files; None writes nothing.

    Raises:
        DfmsdError: the layout is not known. A split that cannot be read is one of the ``errors`` instead.
    """
    from dfmsd.inspection.facts import gather
    from dfmsd.inspection.page import write_data_page
    from dfmsd.utils.files import check_writable

    config = data if isinstance(data, DataConfig) else DataConfig(root=_reference(data, "data"))
    if image_size is not None:
        config = replace(config, image_size=image_size)
    if out is not None:  # before the work that would be lost
        check_writable(_path(out, "out"))
    facts = gather(config)
    if out is not None:
        write_data_page(facts, Path(out))
    return facts


@expands_home
def convert(
    source: str | Path,
    out: str | Path,
    *,
    to: Literal["coco", "yolo", "voc", "shards"] = "coco",
    skip_broken: bool = False,
) -> dict[str, tuple[int, int]]:
    """Write a data set in the format of COCO, YOLO or Pascal VOC, or as COCO in tar files; images are copied.

    Args:
        source: folder in any layout that dfmsd reads; docs/data.md describes them.
        out: folder to create.
        to: format to write; ``shards`` are tar files, which can be read from an object store, too.
        skip_broken: leave out images that cannot be decoded, which ``shards`` refuse otherwise.

    Returns:
        Split -> number of images and of boxes.

    Raises:
        DfmsdError: the source cannot be read, or ``out`` is not empty or cannot be written.
    """
    from dfmsd.data import convert as conversion

    return conversion.convert(_reference(source, "source"), _path(out, "out"), to, skip_broken=skip_broken)


def _detector(model: object) -> Detector:
    from dfmsd.detectors import load_detector

    model = _model(model)
    return model if isinstance(model, Detector) else load_detector(model)


def _model(value: object) -> Detector | str:
    return value if isinstance(value, Detector) else _reference(value, "model", "a Detector or a reference")


def _reference(value: object, name: str, expected: str = "a path or a reference") -> str:
    """Return a path or reference as text; refuse a detector, since files are written for it or next to it."""
    if isinstance(value, str | Path):
        return str(value)
    remedy = "; save it with `save_detector` and pass its folder" if isinstance(value, Detector) else ""
    raise DfmsdError(f"{name}: expected {expected} such as a run folder, got {type(value).__name__}{remedy}")


def _path(value: object, name: str) -> Path:
    return Path(_reference(value, name))


def _listed(paths: object, name: str = "images") -> list[str]:
    several = list(paths) if isinstance(paths, Iterable) and not isinstance(paths, str) else [paths]
    return [_reference(path, name) for path in several]
