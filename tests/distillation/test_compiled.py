"""torch.compile of networks and losses: nothing but the speed of a step changes."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.helpers.few_neurons import IMAGES, TARGETS, FewNeurons, frozen
from tests.helpers.fixtures import STUDENT
from torch import Tensor, nn
from torch.testing import assert_close

from dfmsd.detectors import build_detector
from dfmsd.detectors.base import Detector
from dfmsd.distillation.checks import term_scales
from dfmsd.distillation.compiled import CompiledParts, check_compiler
from dfmsd.distillation.stages import StageConfig
from dfmsd.distillation.task import DistillationTask
from dfmsd.distillation.teacher import FrozenTeacher
from dfmsd.errors import DfmsdError
from dfmsd.types import Batch

Graphs = list[str]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


class Convolutions(FewNeurons):
    """Few neurons of which the first layers can be compiled."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.drop.p = 0.0

    def compilable(self) -> list[nn.Module]:
        return [self.stem, self.norm]


@pytest.fixture
def graphs() -> Graphs:
    """The calls of compiled graphs, each by the names of its operations."""
    return []


@pytest.fixture
def recording(graphs: Graphs) -> Callable[..., Any]:
    """A backend that runs graphs as they are and records it."""

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., Any]:
        operations = " ".join(getattr(node.target, "__name__", str(node.target)) for node in graph.graph.nodes)

        def run(*args: Tensor) -> Any:
            graphs.append(operations)
            return graph.forward(*args)

        return run

    return backend


def distillation(student: Detector, teacher: Detector, loss: str = "dfmsd", **options: Any) -> DistillationTask:
    stages = [StageConfig(1, "big")]
    return DistillationTask(student, stages, [[FrozenTeacher(teacher, "big")]], {"name": loss}, **options).train()


def step(task: DistillationTask, images: Tensor = IMAGES) -> dict[str, Tensor]:
    """Losses and gradients of a step."""
    task.zero_grad()
    named = task(images, TARGETS)
    torch.stack(list(named.values())).sum().backward()
    gradients = {name: value.grad for name, value in task.named_parameters() if value.grad is not None}
    return {name: value.detach() for name, value in (named | gradients).items()}


def measured(task: DistillationTask, yes: bool) -> None:
    """Let the balance measure in the next step, or not."""
    (lesson,) = task.lessons
    assert lesson.balance is not None
    lesson.balance.calls = 0 if yes else lesson.balance.first


def test_a_part_runs_compiled_inside_the_context_alone(graphs: Graphs, recording: Any) -> None:
    layer, value = nn.Linear(2, 2), torch.rand(1, 2)
    parts, expected = CompiledParts([layer, layer], [], recording), layer(value)
    with parts.active(measuring=False):
        assert_close(layer(value), expected)
    assert len(graphs) == 1
    layer(value)
    assert len(graphs) == 1
    assert "forward" not in vars(layer)


def test_a_module_with_a_forward_of_its_own_gets_it_back(recording: Any) -> None:
    layer, value = nn.Linear(2, 2), torch.rand(1, 2)
    layer.forward = own = lambda value: 2 * value  # type: ignore[method-assign]
    with CompiledParts([layer], [], recording).active(measuring=False):
        assert layer.forward is not own
        assert_close(layer(value), 2 * value)
    assert layer.forward is own


def test_hooks_that_come_later_see_a_compiled_part(graphs: Graphs, recording: Any) -> None:
    layer, value, seen = nn.Linear(2, 2), torch.rand(1, 2), []
    parts = CompiledParts([layer], [], recording)
    for _ in range(2):
        with parts.active(measuring=False):
            layer(value)
        layer.register_forward_hook(lambda *args: seen.append(args))
    assert len(graphs) == 2
    assert len(seen) == 1


def test_a_step_is_the_same_and_so_are_the_keys(graphs: Graphs, recording: Any) -> None:
    task = distillation(Convolutions(), FewNeurons(3, prefix="t"))
    expected, keys = step(task), list(task.state_dict())
    assert task.compile_parts(recording) == ["teacher big"]
    assert_close(step(task), expected)
    assert sum("conv2d" in graph for graph in graphs) >= 1
    assert list(task.state_dict()) == keys
    graphs.clear()
    task.student.features(IMAGES)
    assert graphs == []


def test_what_a_balance_measures_runs_as_it_is(graphs: Graphs, recording: Any) -> None:
    task = distillation(Convolutions(), Convolutions(channels=3, prefix="t"), "fitnet", balance=0.5)
    task.compile_parts(recording)
    measured(task, yes=True)
    step(task)
    of_teacher = len(graphs)
    assert of_teacher == 2  # stem and norm
    measured(task, yes=False)
    step(task)
    assert len(graphs) > 3 * of_teacher  # those of the teacher and the student, and the loss


def test_gradients_are_measured_after_a_compiled_step() -> None:
    """As in a run that is resumed. A compiled backward pass runs only once."""
    task = distillation(Convolutions(), FewNeurons(3, prefix="t"), "fitnet", balance=0.5)
    task.compile_parts("aot_eager")
    measured(task, yes=False)
    step(task)
    measured(task, yes=True)
    step(task)
    assert task.lessons[0].balance.calls == 1  # type: ignore[union-attr]
    assert [scale.name for scale in term_scales(task, Batch(IMAGES, TARGETS, [], [], []))] == ["task", "fitnet"]
    assert task.compiled is not None


def pair(arch: str) -> DistillationTask:
    student = build_detector(STUDENT, ("thing",))
    teacher = build_detector(replace(STUDENT, arch=arch, fpn_channels=32), ("thing",))
    return distillation(student, teacher, balance=0.5)


def check_pair(task: DistillationTask, backend: str, **tolerance: float) -> None:
    """Compare a compiled step with a plain one, measured and not."""
    plain = copy.deepcopy(task)
    assert task.compile_parts(backend) == []
    for images, measures in ((torch.rand(2, 3, 64, 64), True), (torch.rand(2, 3, 64, 64), False)):
        found, expected = {}, {}
        for one, values in ((plain, expected), (task, found)):
            measured(one, measures)
            values |= step(one, images)
        assert_close(found, expected, **tolerance)
        assert_close(task.state_dict(), plain.state_dict(), **tolerance)  # statistics of batch norm, and the balance


def test_networks_are_the_same_through_dynamo() -> None:
    check_pair(pair("faster_rcnn"), "eager")


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("arch", ["fcos", "faster_rcnn"])
def test_networks_are_the_same_through_inductor(arch: str) -> None:
    check_pair(pair(arch), "inductor", rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["retinanet", "gfl", "faster_rcnn", "ssdlite"])
def test_every_student_can_be_traced(arch: str, graphs: Graphs, recording: Any) -> None:
    student = build_detector(replace(STUDENT, arch=arch), ("thing",)).train()
    parts = CompiledParts([], student.compilable(), recording)
    images = torch.rand(2, 3, 128, 128)
    with parts.active(measuring=False):
        torch.stack(list(student(images, TARGETS)[1].values())).sum().backward()
    assert len(graphs) == 2  # without a break


def test_a_missing_compiler_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no g++\nanywhere")

    with pytest.raises(DfmsdError, match=r"^compile: .* needs a C\+\+ compiler .* failed \(.*no g\+\+ anywhere"):
        check_compiler(torch.device("cpu"), refuse)


def test_detectors_of_which_nothing_is_known_stay_as_they_are() -> None:
    task = DistillationTask(FewNeurons(), [StageConfig(1, "big")], [[frozen()]], {"name": "fitnet"})
    assert task.compile_parts("eager") == ["the student", "teacher big"]
