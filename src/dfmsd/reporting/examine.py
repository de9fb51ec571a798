"""What a report can only know from the detectors themselves: costs, right and wrong images, masks and attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.progress import track

from dfmsd.data.datamodule import CocoDataModule
from dfmsd.data.dataset import DetectionDataset
from dfmsd.data.transforms import Sample, collate
from dfmsd.detectors import Detector
from dfmsd.engine.config import DistillConfig
from dfmsd.evaluation.evaluate import CocoResult, Metrics, coco_metrics, coco_results, detect, match_classes
from dfmsd.reporting.judge import Judged, best_threshold, judge
from dfmsd.reporting.measure import DetectionCost, detection_costs
from dfmsd.reporting.page import Gallery, Picture, Section
from dfmsd.reporting.pictures import panel
from dfmsd.types import Batch, Detections, LevelSpec
from dfmsd.utils.classes import common_classes
from dfmsd.visualization import draw_scene, lessons, png, see

SHOWN = 4
"""Images of each kind."""
LOOKED_INTO = 2
"""Images whose masks and attention are drawn."""
DPI = 76
"""A picture of masks is then as wide as a page on a desk shows."""


@dataclass
class Examination:
    """What was found.

    Attributes:
        costs: detector -> cost of the detection in one image.
        metrics: detector -> metrics on the images that were looked at.
        levels: teacher -> its pyramid.
        images: how many images were looked at.
        whole: whether these were all validation images.
        sections: pictures.
        notes: what could not be looked at, and why.
    """

    images: int
    whole: bool
    costs: dict[str, DetectionCost] = field(default_factory=dict)
    metrics: dict[str, Metrics] = field(default_factory=dict)
    levels: dict[str, Sequence[LevelSpec]] = field(default_factory=dict)
    sections: list[Section] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def examine(plan: DistillConfig, run: Path, detectors: Mapping[str, Detector], images: int) -> Examination:
    """Run the detectors of a run on its validation images.

    Args:
        plan: config of the run.
        run: its folder.
        detectors: ``student``, ``baseline`` if there is one, and the teachers by their references.
        images: validation images to look at, at most.

    Raises:
        DfmsdError: the images are not there.
    """
    dataset = CocoDataModule(plan.data, seed=plan.seed).val
    teachers = [name for name in detectors if name not in ("student", "baseline")]
    headed = {name: one for name, one in detectors.items() if common_classes(one.class_names, dataset.coco.class_names)}
    samples = [dataset[index] for index in range(min(images, len(dataset)))]
    found = Examination(len(samples), len(samples) == len(dataset))
    found.levels = {name: detectors[name].levels for name in teachers}
    found.costs = detection_costs(headed, collate(samples[:1], dataset.image_size))
    judged: dict[str, list[Judged]] = {}
    for name, detector in headed.items():
        judged[name], found.metrics[name] = _judge_all(name, detector, dataset, samples)
    if "student" in judged:
        found.sections.append(_images_section(judged, samples, dataset))
    if teachers:
        found.sections.append(_attention_section(run, detectors, teachers, samples, dataset))
    return found


def _judge_all(
    name: str, detector: Detector, dataset: DetectionDataset, samples: Sequence[Sample]
) -> tuple[list[Judged], Metrics]:
    """Judge a detector on every image, at the threshold that suits it best."""
    category_of = match_classes(detector.class_names, dataset.coco)
    place_of = common_classes(detector.class_names, dataset.coco.class_names)
    judged: list[Judged] = []
    results: list[CocoResult] = []
    for sample in track(samples, f"detect: {Path(name).name}", transient=True):
        batch = collate([sample], dataset.image_size)
        found = detect(detector, batch)
        results += coco_results(found, batch, category_of)
        judged.append(judge(_as_data_labels(found[0], place_of), sample.target))
    threshold = best_threshold(judged)
    metrics = coco_metrics(dataset.coco, results, [sample.image_id for sample in samples])
    return [one.at(threshold) for one in judged], metrics


def _as_data_labels(found: Detections, place_of: Mapping[int, int]) -> Detections:
    places = torch.tensor([place_of.get(label, -1) for label in found["labels"].tolist()], dtype=torch.int64)
    keep = places >= 0
    return Detections(boxes=found["boxes"][keep], scores=found["scores"][keep], labels=places[keep])


def _images_section(
    judged: Mapping[str, Sequence[Judged]], samples: Sequence[Sample], dataset: DetectionDataset
) -> Section:
    own = [one.f1 for one in judged["student"]]
    kinds = {"worst": sorted(range(len(samples)), key=lambda index: own[index])[:SHOWN]}
    notes = [
        "Right is a detection that overlaps an object of its class by half or more. Each detector is shown at the "
        "score at which it has the best F1 on these images. Full lines: the truth, and right detections; dashed: wrong "
        "ones."
    ]
    if "baseline" in judged:
        gains = {index: own[index] - judged["baseline"][index].f1 for index in range(len(samples))}
        order = sorted(gains, key=lambda index: gains[index])
        kinds["most improved against the baseline"] = [index for index in reversed(order) if gains[index] > 0][:SHOWN]
        kinds["worsened most against the baseline"] = [index for index in order if gains[index] < 0][:SHOWN]
    names = dataset.coco.class_names
    galleries = [
        Gallery(
            f"{dataset.coco.records[index].path.name}: {kind}",
            [
                panel("the truth", samples[index], None, names),
                *(panel(Path(name).name, samples[index], ones[index], names) for name, ones in judged.items()),
            ],
        )
        for kind, indices in kinds.items()
        for index in indices
    ]
    return Section("Images", notes, galleries=galleries)


def telling(samples: Sequence[Sample]) -> list[int]:
    """Give the places of the first images with objects, which masks follow; if there are too few, of others, too."""
    return sorted(range(len(samples)), key=lambda place: not len(samples[place].target["boxes"]))[:LOOKED_INTO]


def _attention_section(
    run: Path,
    detectors: Mapping[str, Detector],
    teachers: Sequence[str],
    samples: Sequence[Sample],
    dataset: DetectionDataset,
) -> Section:
    galleries = []
    student = detectors["student"]
    for name in teachers:
        taught = lessons(str(run), student, name, detectors[name])
        for sample, file in ((samples[index], dataset.coco.records[index].path.name) for index in telling(samples)):
            batch: Batch = collate([sample], dataset.image_size)
            boxes = sample.target["boxes"]
            scene = see(file, student, detectors[name], taught, batch.images, boxes, "the annotations")
            figure = draw_scene(scene)
            width, height = (round(side * DPI) for side in figure.get_size_inches())
            alt = f"Attention, masks and errors in {file} on every level, teacher {name}."
            picture = Picture(png(figure, dpi=DPI), "png", (width, height), alt)
            galleries.append(Gallery(f"{file}, teacher {name}", [picture], wide=True))
    note = (
        "Where teacher and student look, which positions and channels are masked, before and after masking "
        "enhancement, and how well the training-only layers rebuild what was masked: of the delivered student, on "
        "validation images."
    )
    return Section("Masks and attention", [note], galleries=galleries)
