"""The facts about a data set as an HTML page, with contact sheets as PNG files next to it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from dfmsd.inspection.facts import DataFacts
from dfmsd.inspection.sheet import choose_images, draw_sheet
from dfmsd.inspection.tables import size_table, split_table
from dfmsd.reporting.page import Gallery, Section, Table, write_page
from dfmsd.reporting.panels import image_panel
from dfmsd.reporting.plots import bars
from dfmsd.utils.files import make_folder, write_atomically
from dfmsd.visualization.figures import render_png

PAGE = "data.html"


def write_data_page(facts: DataFacts, out: Path) -> Path:
    """Write ``data.html``, and ``<split>.png`` for each split.

    Args:
        facts: About the data set.
        out: Folder; files of an earlier page are replaced.

    Returns:
        The page.
    """
    make_folder(out)
    galleries = []
    for name, split in facts.splits.items():
        images = choose_images(split)
        picture = render_png(draw_sheet(images, split.class_names))
        write_atomically(out / f"{name}.png", partial(Path.write_bytes, data=picture))
        panels = [image_panel(record.path.name, sample, None, split.class_names) for record, sample in images]
        galleries.append(Gallery(name, panels))
    lead = f"{facts.layout.name} layout in {facts.layout.root}."
    problems = [f"{name} cannot be read: {reason}" for name, reason in facts.errors.items()]
    sections = [
        Section("Splits", [*problems, *facts.findings], Table(*split_table(facts)), lead=lead),
        Section("Classes", figures=[bars("Objects by class", _classes(facts), "Objects", digits=0)]),
        Section("Object sizes", [_sizes_note(facts)], Table(*size_table(facts))),
        Section("Images", galleries=galleries),
    ]
    return write_page(out / PAGE, f"Data: {facts.layout.root.name}", sections)


def _classes(facts: DataFacts) -> dict[str, dict[str, float | None]]:
    return {name: {cls: float(count) for cls, count in split.objects.items()} for name, split in facts.facts.items()}


def _sizes_note(facts: DataFacts) -> str:
    return (
        f"Objects by size, the square root of their area in pixels after resizing the longer side to "
        f"{facts.image_size}, and the pyramid level of an FCOS student that is responsible for them."
    )
