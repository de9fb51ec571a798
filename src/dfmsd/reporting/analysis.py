"""Analysis of a run's detectors on its validation images, for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.progress import track

from dfmsd.data.batching import collate
from dfmsd.data.datamodule import CocoDataModule
from dfmsd.data.dataset import DetectionDataset
from dfmsd.data.transforms import Sample
from dfmsd.detectors import Detector
from dfmsd.engine.config import DistillConfig
from dfmsd.evaluation.evaluate import CocoResult, Metrics, coco_metrics, coco_results, detect, match_classes
from dfmsd.evaluation.matching import ImageMatches, best_threshold, match_detections, to_data_labels
from dfmsd.reporting.galleries import attention_section, images_section
from dfmsd.reporting.inference_cost import InferenceCost, inference_costs
from dfmsd.reporting.page import Section
from dfmsd.types import Detections, LevelSpec
from dfmsd.utils.classes import common_classes
from dfmsd.utils.console import console


@dataclass
class Analysis:
    """What running the detectors of a run has shown.

    Attributes:
        images: number of images analyzed.
        whole: whether these are all validation images.
        costs: detector -> cost of detection in one image.
        metrics: detector -> metrics on the analyzed images.
        levels: teacher -> pyramid levels.
        sections: report sections with pictures.
        notes: what could not be analyzed, and why.
    """

    images: int
    whole: bool
    costs: dict[str, InferenceCost] = field(default_factory=dict)
    metrics: dict[str, Metrics] = field(default_factory=dict)
    levels: dict[str, Sequence[LevelSpec]] = field(default_factory=dict)
    sections: list[Section] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def analyze(config: DistillConfig, run: Path, detectors: Mapping[str, Detector], images: int) -> Analysis:
    """Run the detectors of a run on its validation images; teachers see them at the size that they had in the run.

    Args:
        config: of the run.
        run: run folder.
        detectors: ``student``, ``baseline`` if there is one, and the teachers by reference.
        images: maximum number of validation images.

    Raises:
        DfmsdError: the images are missing.
    """
    dataset = CocoDataModule(config.data, seed=config.seed).val
    teachers = [name for name in detectors if name not in ("student", "baseline")]
    comparable = {
        name: detector
        for name, detector in detectors.items()
        if common_classes(detector.class_names, dataset.coco.class_names)
    }
    samples = [dataset[index] for index in range(min(images, len(dataset)))]
    analysis = Analysis(len(samples), whole=len(samples) == len(dataset))
    analysis.levels = {name: detectors[name].levels for name in teachers}
    larger = dataset if config.teacher_size is None else DetectionDataset(dataset.coco, config.teacher_size)
    shown = {name: larger if name in teachers else dataset for name in comparable}
    batches = {name: collate([each[0]], each.image_size) for name, each in shown.items()}
    analysis.costs = inference_costs(comparable, batches)
    matches: dict[str, list[ImageMatches]] = {}
    for name, detector in comparable.items():
        matches[name], analysis.metrics[name] = _match_all(name, detector, shown[name], samples)
    if "student" in matches:
        analysis.sections.append(images_section(matches, samples, dataset))
    if teachers:
        analysis.sections.append(attention_section(run, detectors, teachers, samples, dataset))
    return analysis


def _match_all(
    name: str, detector: Detector, dataset: DetectionDataset, samples: Sequence[Sample]
) -> tuple[list[ImageMatches], Metrics]:
    """Match a detector's detections in every image, at its best threshold, and measure its metrics.

    Args:
        name: of the detector, for the progress.
        detector: the detector.
        dataset: images as the detector sees them.
        samples: the first of these images, as the student sees them, whose pixels the matches are in.
    """
    category_of = match_classes(detector.class_names, dataset.coco)
    data_label = common_classes(detector.class_names, dataset.coco.class_names)
    matches: list[ImageMatches] = []
    results: list[CocoResult] = []
    progress = track(samples, f"detect: {Path(name).name}", console=console, transient=True)
    for index, sample in enumerate(progress):
        seen = dataset[index]
        batch = collate([seen], dataset.image_size)
        (found,) = detections = detect(detector, batch)
        results += coco_results(detections, batch, category_of)
        (down, across), (seen_down, seen_across) = sample.scale, seen.scale
        ratio = torch.tensor([across / seen_across, down / seen_down] * 2)
        found = Detections(boxes=found["boxes"] * ratio, scores=found["scores"], labels=found["labels"])
        matches.append(match_detections(to_data_labels(found, data_label), sample.target))
    threshold = best_threshold(matches)
    metrics = coco_metrics(dataset.coco, results, [sample.image_id for sample in samples])
    return [image.above(threshold) for image in matches], metrics
