"""The order of the rooms: imports point down, and never in a circle. docs/architecture.md describes it."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import grimp
import pytest

LAYERS = (
    "cli",
    "api",
    "demo",
    "starting",
    "tuning",
    "recipes",
    "comparison",
    "launching",
    "inspection",
    "sharing",
    "reporting",
    "visualization",
    "exporting",
    "estimation",
    "ranking",
    "engine",
    "distillation",
    "evaluation",
    "detectors",
    "losses",
    "data",
    "runfolder",
    "utils",
    "types",
    "errors",
)
"""From the top down: a room may import those below it."""
FAMILIES = ("torchvision", "huggingface", "mmdet", "ultralytics")
"""Rooms of `dfmsd.detectors` that do not know each other."""


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Every import between the package's modules, those inside functions and for type checking included."""
    return grimp.build_graph("dfmsd", cache_dir=None)


def test_every_room_has_its_place_in_the_order(graph: grimp.ImportGraph) -> None:
    rooms = {module.removeprefix("dfmsd.") for module in graph.find_children("dfmsd")}
    assert rooms - {"__main__"} == set(LAYERS)


def test_no_room_imports_one_above_it(graph: grimp.ImportGraph) -> None:
    illegal = graph.find_illegal_dependencies_for_layers(layers=[f"dfmsd.{layer}" for layer in LAYERS])
    assert [f"{dependency.importer} imports {dependency.imported}" for dependency in illegal] == []


def test_no_import_goes_in_a_circle(graph: grimp.ImportGraph) -> None:
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def test_families_of_detectors_do_not_import_each_other(graph: grimp.ImportGraph) -> None:
    rooms = {f"dfmsd.detectors.{family}" for family in FAMILIES}
    for room in rooms:
        inside = {room, *graph.find_descendants(room)}
        imported = {name for module in inside for name in graph.find_modules_directly_imported_by(module)}
        others = {name for name in imported for other in rooms - {room} if name.startswith(other)}
        assert others == set(), room
