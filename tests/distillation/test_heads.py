"""Losses on predictions in a task: both heads run, once each, and only the student learns."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from tests.helpers.fixtures import TINY_BACKBONE
from torch import Tensor
from torch.testing import assert_close

from dfmsd.detectors import DetectorConfig, TorchvisionDetector, build_detector
from dfmsd.distillation.cache import Layout, TeacherCache
from dfmsd.distillation.checks import term_scales
from dfmsd.distillation.stages import StageConfig
from dfmsd.distillation.task import DistillationTask
from dfmsd.distillation.teacher import FrozenTeacher
from dfmsd.errors import DfmsdError
from dfmsd.losses import check_options
from dfmsd.losses.functional import crosskd_cls, crosskd_reg, match_statistics
from dfmsd.types import Batch, Target
from dfmsd.utils.store import RamStore

NAMES = ("a", "b")
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
TARGETS: list[Target] = [
    {"boxes": torch.tensor([[8.0, 8, 40, 44], [40, 20, 62, 50]]), "labels": torch.tensor([0, 1])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)},
]
CROSSKD = {"name": "crosskd"}
LD = {"name": "ld"}


def detector(arch: str = "fcos", names: tuple[str, ...] = NAMES, **values: Any) -> TorchvisionDetector:
    config = DetectorConfig(**{"arch": arch, "backbone": TINY_BACKBONE, "fpn_channels": 16, "head_convs": 2, **values})
    return build_detector(config, names)


def task_of(
    student: TorchvisionDetector, teacher: TorchvisionDetector | FrozenTeacher, loss: Any = CROSSKD
) -> DistillationTask:
    frozen = teacher if isinstance(teacher, FrozenTeacher) else FrozenTeacher(teacher, "big")
    return DistillationTask(student, [StageConfig(1, "big")], [[frozen]], loss)


def cross(named: dict[str, Tensor], term: str) -> Tensor:
    return torch.stack([value for name, value in named.items() if name.startswith(f"{term}/")]).sum()


@pytest.mark.parametrize("arch", ["fcos", "retinanet"])
def test_the_terms_are_those_of_the_whole_heads(arch: str) -> None:
    """Compared with both complete models on concatenated levels, and torchvision's own head after the cut."""
    student, teacher = detector(arch), detector(arch, head_convs=3)
    named = task_of(student, teacher)(IMAGES, TARGETS)
    features, theirs = student.features(IMAGES), teacher.features(IMAGES)
    _, _, seen = student.forward_with_head(IMAGES, TARGETS, 1)
    rest = copy.deepcopy(teacher.model.head)
    for part in (rest.classification_head, rest.regression_head):
        part.conv = torch.nn.Sequential(*_layers(part.conv)[-3:])  # the last block: conv, norm, ReLU
    logits, boxes, wanted_logits, wanted_boxes = [], [], [], []
    for name, level in features.items():
        own, their = _held(student, level), _held(teacher, theirs[name])
        mixed = [match_statistics(mine, given).relu() for mine, given in zip(own, their, strict=True)]
        box_deltas = rest.regression_head([mixed[1]])
        whole = teacher.model.head([theirs[name]])
        decode = partial(teacher.dense_head.decode, anchors=seen.anchors[name])
        logits.append(rest.classification_head([mixed[0]]))
        boxes.append(decode(box_deltas[0] if arch == "fcos" else box_deltas))
        wanted_logits.append(whole["cls_logits"])
        wanted_boxes.append(decode(whole["bbox_regression"]))
    x, b, t, b_t = (torch.cat(parts, dim=1) for parts in (logits, boxes, wanted_logits, wanted_boxes))
    valid, positives = torch.cat(list(seen.valid.values()), dim=1), seen.positives.clamp(min=1)
    factors = (0.4, 0.75) if arch == "fcos" else (1.0, 1.0)
    weight = t.sigmoid().amax(2) * valid
    wanted_cls = factors[0] * crosskd_cls(x, t, valid) / positives
    wanted_reg = factors[1] * crosskd_reg(b, b_t, weight, generalized=arch == "retinanet") / positives
    assert_close(cross(named, "cross_cls"), wanted_cls, rtol=1e-4, atol=1e-6)
    assert_close(cross(named, "cross_reg"), wanted_reg, rtol=1e-4, atol=1e-6)


def _layers(tower: torch.nn.Module) -> list[torch.nn.Module]:
    return [layer for layer in tower.modules() if not list(layer.children())]


def _held(model: TorchvisionDetector, level: Tensor) -> list[Tensor]:
    """Run both towers up to the last block but one, without its ReLU."""
    held = []
    for part in (model.model.head.classification_head, model.model.head.regression_head):
        value = level
        for layer in _layers(part.conv)[:-4]:
            value = layer(value)
        held.append(value)
    return held


@pytest.mark.parametrize("arch", ["fcos", "retinanet"])
def test_the_gradient_reaches_the_students_tower_and_not_the_teacher(arch: str) -> None:
    student, teacher = detector(arch), detector(arch)
    before = copy.deepcopy(teacher.state_dict())
    named = task_of(student, teacher)(IMAGES, TARGETS)
    torch.stack([value for name, value in named.items() if name.startswith("cross_")]).sum().backward()
    head = dict(student.model.head.named_parameters())
    learning = {name for name, value in head.items() if value.grad is not None and value.grad.any()}
    assert learning
    assert all(".conv.0" in name or ".conv.1." in name for name in learning)
    assert {name.split(".")[0] for name in learning} == {"classification_head", "regression_head"}
    assert any(value.grad is not None and value.grad.any() for value in student.model.backbone.parameters())
    assert all(value.grad is None for value in teacher.parameters())
    assert_close(dict(teacher.state_dict()), dict(before), rtol=0, atol=0)


@pytest.mark.parametrize("arch", ["fcos", "retinanet"])
def test_a_student_that_is_the_teacher_has_nothing_to_learn(arch: str) -> None:
    teacher = detector(arch).eval()
    task = task_of(copy.deepcopy(teacher), teacher, {**CROSSKD, "eps": 1e-9}).eval()
    other = task_of(detector(arch), teacher).eval()
    for term in ("cross_cls", "cross_reg"):
        equal, unlike = (float(cross(t(IMAGES, TARGETS), term).detach()) for t in (task, other))
        assert 0 <= equal < 1e-5 * unlike


def test_one_forward_of_each_models_backbone() -> None:
    student, teacher = detector(), detector()
    calls = {"student": 0, "teacher": 0}
    for who, model in (("student", student.model), ("teacher", teacher.model)):
        model.backbone.register_forward_hook(lambda *_, who=who: calls.update({who: calls[who] + 1}))
    task_of(student, teacher)(IMAGES, TARGETS)
    assert calls == {"student": 1, "teacher": 1}


def test_losses_on_features_run_no_teachers_head() -> None:
    teacher = detector()
    for part in (teacher.model.head.classification_head.conv, teacher.model.head.regression_head.conv):
        part[0].register_forward_hook(lambda *_: pytest.fail("the head ran"))
    task = task_of(detector(), teacher, {"name": "pkd"})
    assert task.lessons[0].heads is None
    task(IMAGES, TARGETS)


def test_crosskd_can_be_part_of_a_sum() -> None:
    student, teacher = detector(), detector()
    both = task_of(student, teacher, [{"name": "pkd"}, CROSSKD])
    named = both.eval()(IMAGES, TARGETS)
    alone = [task_of(student, teacher, loss).eval()(IMAGES, TARGETS) for loss in ({"name": "pkd"}, CROSSKD)]
    assert_close(named, {**alone[0], **alone[1]})
    assert {name.split("/")[0] for name in named} == {"task", "pkd", "cross_cls", "cross_reg"}


def test_the_head_runs_on_the_cached_pyramid() -> None:
    teacher = FrozenTeacher(detector(), "big", torch.float32)
    task = task_of(detector(), teacher).eval()
    (levels,) = task.levels_in_use(0).values()
    assert levels == set(teacher.levels)  # the head needs all of them
    fresh = task(IMAGES, TARGETS)
    teacher.cache = TeacherCache(RamStore(2**24), Layout(teacher.levels, (64, 64)))
    first = task(IMAGES, TARGETS, ["one", "two"])
    teacher.detector.model.backbone.register_forward_hook(lambda *_: pytest.fail("the teacher's backbone ran"))
    again = task(IMAGES, TARGETS, ["one", "two"])
    assert teacher.cache.hits == 2
    assert_close(again, first, rtol=0, atol=0)
    for term in ("cross_cls", "cross_reg"):
        assert_close(cross(first, term), cross(fresh, term), rtol=0.01, atol=1e-5)  # float16


def test_terms_are_float32_under_autocast() -> None:
    task = task_of(detector(), detector())
    with torch.autocast("cpu", torch.bfloat16):
        named = task(IMAGES, TARGETS)
    assert all(value.dtype == torch.float32 and value.isfinite() for value in named.values())
    torch.stack(list(named.values())).sum().backward()


def test_the_preflight_measures_crosskd_and_a_copy_is_independent() -> None:
    task = task_of(detector(), detector())
    scales = term_scales(task, Batch(IMAGES, TARGETS, [(64, 64)] * 2, [(1.0, 1.0)] * 2, [1, 2]))
    assert [scale.name for scale in scales] == ["task", "cross_cls", "cross_reg"]
    assert all(scale.gradient > 0 for scale in scales)
    twin = copy.deepcopy(task)
    assert twin.student is not task.student
    assert twin.lessons[0].heads.teacher is twin.teachers[0][0] is not task.teachers[0][0]


def test_two_steps_teach_the_student_alone() -> None:
    student, teacher = detector(), detector()
    task = task_of(student, teacher).train()
    theirs, ours = copy.deepcopy(teacher.state_dict()), copy.deepcopy(dict(student.named_parameters()))
    optimizer = torch.optim.SGD(task.trainable.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        torch.stack(list(task(IMAGES, TARGETS).values())).sum().backward()
        optimizer.step()
    assert_close(dict(teacher.state_dict()), dict(theirs), rtol=0, atol=0)
    assert not [name for name, value in student.named_parameters() if torch.equal(value, ours[name])]


MISFITS = [
    ({"arch": "retinanet"}, r"arch differ: fcos \(student\), retinanet \(teacher\); set student\.arch"),
    ({"names": ("a", "c")}, r"classes differ: \('a', 'b'\).*train the teacher on this data"),
    (
        {"fpn_channels": 32},
        r"channels differ: 16 \(student\), 32 \(teacher\); set student\.fpn_channels",
    ),
    ({"arch": "gfl"}, r"the teacher has a head of gfl; use fcos or retinanet for both, or a loss on features"),
    ({"arch": "faster_rcnn"}, r"the teacher has no dense head that can be cut; use fcos or retinanet for both"),
]


@pytest.mark.parametrize(("values", "message"), MISFITS)
def test_heads_that_do_not_match_are_refused_when_the_task_is_built(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DfmsdError, match=rf"stage 1, teacher big: .*{message}") as caught:
        task_of(detector(), detector(**values))
    assert "\n" not in str(caught.value)


def test_other_anchors_and_too_many_reused_convolutions_are_refused() -> None:
    with pytest.raises(DfmsdError, match=r"anchors differ: .*set student\.anchor_scale to the teacher's"):
        task_of(detector("retinanet"), detector("retinanet", anchor_scale=2.0))
    with pytest.raises(DfmsdError, match=r"loss\.reused must be below the 2 convolutions of the towers, got 2"):
        task_of(detector(), detector(head_convs=4), {**CROSSKD, "reused": 2})


def test_a_student_without_dense_head_is_refused() -> None:
    with pytest.raises(DfmsdError, match="the student has no dense head"):
        task_of(detector("faster_rcnn"), detector())


# LD, whose heads run to their ends.


def sides(box_deltas: Tensor) -> Tensor:
    """Logits of the distributions, over bins in the last dimension."""
    return box_deltas.unflatten(2, (4, 17))


def test_ld_compares_what_the_two_whole_heads_predict() -> None:
    """A teacher of another width and depth, against both models run whole, on concatenated levels."""
    student, teacher = detector("gfl"), detector("gfl", fpn_channels=32, head_convs=1)
    for found in (student, teacher):
        torch.nn.init.normal_(found.model.head.regression_head.bbox_reg.weight, std=0.3)
        torch.nn.init.uniform_(found.model.head.regression_head.scales, 0.5, 2.0)
    named = task_of(student, teacher, LD)(IMAGES, TARGETS)
    _, _, seen = student.forward_with_head(IMAGES, TARGETS, 0)
    own, theirs = (found.model.head(list(found.features(IMAGES).values())) for found in (student, teacher))
    s, t = (sides(outputs["bbox_regression"]) for outputs in (own, theirs))
    p, q = (t / 10).softmax(-1), (s / 10).softmax(-1)
    error = 100 * (p * (p.log() - q.log())).mean(-1).mean(-1)  # of each anchor
    objects, near = (torch.cat(list(part.values()), dim=1) for part in (seen.objects, seen.near))
    weight = own["cls_logits"].sigmoid().amax(2) * objects
    assert objects.sum() > 1
    assert_close(cross(named, "ld_main"), 0.25 * (weight * error).sum(), rtol=1e-4, atol=1e-7)
    assert_close(cross(named, "ld_valuable"), 0.25 / 4 * (near * error).sum(), rtol=1e-4, atol=1e-7)
    y, x = ((outputs["cls_logits"] / 2).softmax(-1) for outputs in (theirs, own))
    classes = 10 * 4 * (y * (y.log() - x.log())).mean(-1)
    counts = [len(anchors) for anchors in seen.anchors.values()]
    by_level = [
        (value * mask).sum() / mask.sum().clamp(min=1)
        for value, mask in zip(classes.split(counts, 1), objects.split(counts, 1), strict=True)
    ]
    assert_close(cross(named, "ld_cls"), torch.stack(by_level).sum(), rtol=1e-4, atol=1e-7)


def test_ld_teaches_the_whole_students_head_and_not_the_teacher() -> None:
    student, teacher = detector("gfl"), detector("gfl")
    named = task_of(student, teacher, LD)(IMAGES, TARGETS)
    assert {name.split("/")[0] for name in named} == {"task", "ld_main", "ld_valuable", "ld_cls"}
    torch.stack([value for name, value in named.items() if name.startswith("ld_")]).sum().backward()
    assert all(value.grad is not None and value.grad.any() for value in student.model.head.parameters())
    assert any(value.grad is not None and value.grad.any() for value in student.model.backbone.parameters())
    assert all(value.grad is None for value in teacher.parameters())


def test_a_gfl_student_that_is_the_teacher_has_nothing_to_learn() -> None:
    teacher = detector("gfl").eval()
    task, other = task_of(copy.deepcopy(teacher), teacher, LD).eval(), task_of(detector("gfl"), teacher, LD).eval()
    for term in ("ld_main", "ld_valuable", "ld_cls"):
        equal, unlike = (float(cross(t(IMAGES, TARGETS), term).detach()) for t in (task, other))
        assert abs(equal) < 1e-4 * unlike


def test_ld_without_any_object_is_zero() -> None:
    named = task_of(detector("gfl"), detector("gfl"), LD)(IMAGES, [TARGETS[1]] * 2)
    torch.stack(list(named.values())).sum().backward()
    assert all(float(cross(named, term).detach()) == 0 for term in ("ld_main", "ld_valuable", "ld_cls"))


def test_ld_can_be_part_of_a_sum_and_the_preflight_measures_it() -> None:
    task = task_of(detector("gfl"), detector("gfl"), [{"name": "pkd"}, {**LD, "valuable": 0}])
    with torch.autocast("cpu", torch.bfloat16):
        named = task(IMAGES, TARGETS)
    assert {name.split("/")[0] for name in named} == {"task", "pkd", "ld_main", "ld_cls"}
    assert all(value.dtype == torch.float32 and value.isfinite() for value in named.values())
    scales = term_scales(task, Batch(IMAGES, TARGETS, [(64, 64)] * 2, [(1.0, 1.0)] * 2, [1, 2]))
    assert [scale.name for scale in scales] == ["task", "pkd", "ld_main", "ld_cls"]
    assert all(scale.gradient > 0 for scale in scales)


LD_MISFITS = [
    ("fcos", {"arch": "fcos"}, "ld compares distributions of the sides of boxes, and the student has a head of fcos; "),
    ("gfl", {"arch": "retinanet"}, "and the teacher has a head of retinanet; use gfl for both, or a loss on features"),
    ("faster_rcnn", {}, "and the student has no dense head that can be cut; use gfl for both"),
    ("gfl", {"arch": "gfl", "names": ("b", "a")}, r"ld needs two heads .* their classes differ: .*teacher on"),
]


@pytest.mark.parametrize(("arch", "values", "message"), LD_MISFITS)
def test_ld_refuses_heads_without_distributions(arch: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(DfmsdError, match=rf"stage 1, teacher big: .*{message}") as caught:
        task_of(detector(arch), detector(**values), LD)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [{"fpn_channels": 32}, {"anchor_scale": 4}, {"anchor_scale": 16}])
def test_ld_takes_teachers_of_other_widths_and_anchors(values: dict[str, Any]) -> None:
    task = task_of(detector("gfl"), detector("gfl", **values), LD)
    assert [pair.student.name for pair in task.lessons[0].criterion.pairs] == ["p3", "p4", "p5", "p6", "p7"]
    assert not [name for name, parameter in task.lessons[0].criterion.named_parameters() if parameter.requires_grad]
    scales = term_scales(task, Batch(IMAGES, TARGETS, [(64, 64)] * 2, [(1.0, 1.0)] * 2, [1, 2]))
    assert all(scale.gradient > 0 for scale in scales)
    assert any(name.startswith("pearson") for name in task.diagnostics()) == ("fpn_channels" not in values)


def test_ld_of_one_class_compares_boxes_only() -> None:
    targets: list[Target] = [{**target, "labels": torch.zeros_like(target["labels"])} for target in TARGETS]
    named = task_of(detector("gfl", names=("a",)), detector("gfl", names=("a",)), LD)(IMAGES, targets)
    assert {name.split("/")[0] for name in named} == {"task", "ld_main", "ld_valuable"}


@pytest.mark.parametrize("name", ["crosskd", "ld", "detrdistill"])
@pytest.mark.parametrize("option", [{"pairing": {"p3": "p3", "p4": "p4"}}, {"project": True}, {"resize": "teacher"}])
def test_losses_on_predictions_refuse_options_of_features(name: str, option: dict[str, Any]) -> None:
    (key,) = option
    with pytest.raises(DfmsdError, match=rf"loss\.{key}: {name} compares predictions, not features; leave {key} out"):
        check_options(name, **option)
    assert check_options(name, pairing="auto", project=False) == {}  # the defaults, from configs that state all


def test_ld_refuses_other_bins() -> None:
    student, teacher = detector("gfl"), detector("gfl")
    teacher.model.box_coder.bins = 9
    with pytest.raises(DfmsdError, match=r"bins differ: 17 \(student\), 9 \(teacher\)"):
        task_of(student, teacher, LD)


# Several teachers at once.


@pytest.mark.parametrize(
    ("arch", "loss", "terms"),
    [("fcos", CROSSKD, ("cross_cls", "cross_reg")), ("gfl", LD, ("ld_main", "ld_valuable", "ld_cls"))],
)
def test_teachers_with_heads_of_the_students_kind_teach_at_once(
    arch: str, loss: dict[str, Any], terms: tuple[str, ...]
) -> None:
    student, first, second = (detector(arch).eval() for _ in range(3))
    stage = [StageConfig(1, ["one", "two"])]
    both = DistillationTask(student, stage, [[FrozenTeacher(first, "one"), FrozenTeacher(second, "two")]], loss)
    named = both.eval()(IMAGES, TARGETS)
    for number, teacher in ((1, first), (2, second)):
        alone = task_of(student, teacher, loss).eval()(IMAGES, TARGETS)
        for term in terms:
            assert_close(cross(named, f"T{number}.{term}"), cross(alone, term))
            assert cross(alone, term) > 0


def test_teachers_with_heads_of_other_depths_need_an_explicit_cut() -> None:
    student, stage = detector(head_convs=4), [StageConfig(1, ["one", "two"])]
    teachers = [[FrozenTeacher(detector(head_convs=4), "one"), FrozenTeacher(detector(head_convs=2), "two")]]
    with pytest.raises(DfmsdError, match=r"^stage 1: the teachers' heads differ in depth.*set loss\.reused to 1"):
        DistillationTask(student, stage, teachers, CROSSKD)
    named = DistillationTask(student, stage, teachers, {**CROSSKD, "reused": 1})(IMAGES, TARGETS)
    assert {name.partition("/")[0] for name in named if "cross" in name} == {
        f"T{number}.cross_{kind}" for number in (1, 2) for kind in ("cls", "reg")
    }
