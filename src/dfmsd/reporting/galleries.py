"""Report sections with pictures: detections, and the attention and masks of the distillation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dfmsd.data.batching import collate
from dfmsd.data.dataset import DetectionDataset
from dfmsd.data.transforms import Sample
from dfmsd.detectors import Detector
from dfmsd.evaluation.matching import ImageMatches
from dfmsd.reporting.page import Gallery, Picture, Section
from dfmsd.reporting.panels import image_panel
from dfmsd.types import Batch
from dfmsd.visualization.criteria import stage_criteria
from dfmsd.visualization.figures import draw_scene, render_png
from dfmsd.visualization.scene import build_scene

IMAGES_PER_KIND = 4
"""Number of worst, most improved and most worsened images."""
IMAGES_WITH_MASKS = 2
"""Number of images with attention and masks."""
DPI = 76
"""Makes a picture of masks as wide as a desktop page."""


def images_section(
    matches: Mapping[str, Sequence[ImageMatches]], samples: Sequence[Sample], dataset: DetectionDataset
) -> Section:
    """Show the images with the worst detections and those that changed most against the baseline.

    Args:
        matches: detector -> matches of each image; includes ``student``.
        samples: the images.
        dataset: their data set.
    """
    f1 = [image.f1 for image in matches["student"]]
    kinds = {"worst": sorted(range(len(samples)), key=lambda index: f1[index])[:IMAGES_PER_KIND]}
    notes = [
        "A detection is correct if its IoU with an object of the same class is at least 0.5. Each detector is shown "
        "at the score threshold with its best F1 on these images. Solid lines: ground truth and correct detections; "
        "dashed lines: wrong detections."
    ]
    if "baseline" in matches:
        gains = {index: f1[index] - matches["baseline"][index].f1 for index in range(len(samples))}
        order = sorted(gains, key=lambda index: gains[index])
        improved = [index for index in reversed(order) if gains[index] > 0]
        worsened = [index for index in order if gains[index] < 0]
        kinds["most improved over the baseline"] = improved[:IMAGES_PER_KIND]
        kinds["most worsened against the baseline"] = worsened[:IMAGES_PER_KIND]
    class_names = dataset.coco.class_names
    galleries = [
        Gallery(
            f"{dataset.coco.records[index].path.name}: {kind}",
            [
                image_panel("ground truth", samples[index], None, class_names),
                *(
                    image_panel(Path(name).name, samples[index], images[index], class_names)
                    for name, images in matches.items()
                ),
            ],
        )
        for kind, indices in kinds.items()
        for index in indices
    ]
    return Section("Images", notes, galleries=galleries)


def attention_section(
    run: Path,
    detectors: Mapping[str, Detector],
    teachers: Sequence[str],
    samples: Sequence[Sample],
    dataset: DetectionDataset,
) -> Section:
    """Draw attention, masks and reconstruction errors of each teacher's stages.

    Args:
        run: run folder.
        detectors: ``student`` and the teachers by reference.
        teachers: references.
        samples: the images.
        dataset: their data set.
    """
    galleries = []
    student = detectors["student"]
    for name in teachers:
        stages = stage_criteria(str(run), student, name, detectors[name])
        if not stages:  # the loss compares the predictions of queries
            continue
        for index in images_with_objects(samples):
            file, sample = dataset.coco.records[index].path.name, samples[index]
            batch: Batch = collate([sample], dataset.image_size)
            boxes = sample.target["boxes"]
            seen_at = stages[0].teacher_size
            larger = None
            if seen_at is not None:
                larger = collate([DetectionDataset(dataset.coco, seen_at)[index]], seen_at).images
            scene = build_scene(file, student, detectors[name], stages, batch.images, boxes, "annotations", larger)
            figure = draw_scene(scene)
            width, height = (round(side * DPI) for side in figure.get_size_inches())
            alt = f"Attention, masks and errors in {file} on every level, teacher {name}."
            picture = Picture(render_png(figure, dpi=DPI), "png", (width, height), alt)
            galleries.append(Gallery(f"{file}, teacher {name}", [picture], wide=True))
    note = (
        "For the delivered student on validation images: spatial attention of teacher and student, the masked "
        "positions and channels before and after masking enhancement, and how well the training-only layers "
        "reconstruct what was masked."
        if galleries
        else "The loss compares the predictions of queries, so there are no features to draw."
    )
    return Section("Masks and attention", [note], galleries=galleries)


def images_with_objects(samples: Sequence[Sample]) -> list[int]:
    """Return the indices of the first images with objects, which masks follow, filled up with other images."""
    return sorted(range(len(samples)), key=lambda index: not len(samples[index].target["boxes"]))[:IMAGES_WITH_MASKS]
