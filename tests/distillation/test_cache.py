from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tests.helpers.fixtures import TINY_BACKBONE
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
from torch.testing import assert_close

from dfmsd.data.batching import collate
from dfmsd.data.transforms import Sample, hflip, pixel_digest
from dfmsd.detectors import Detector, DetectorConfig, build_detector
from dfmsd.distillation.cache import Layout, TeacherCache, decode, encode, namespace
from dfmsd.distillation.stages import StageConfig
from dfmsd.distillation.task import DistillationTask
from dfmsd.distillation.teacher import FrozenTeacher
from dfmsd.errors import DfmsdError
from dfmsd.types import Detections, FeaturePyramid, LevelSpec, Target
from dfmsd.utils.store import DiskStore, RamStore, entry_bytes

FRAME = (32, 64)
IMAGES = torch.rand(4, 3, *FRAME, generator=torch.Generator().manual_seed(0))
KEYS = ("a", "b", "c", "d")
TARGETS: list[Target] = [{"boxes": torch.tensor([[4.0, 4.0, 40.0, 20.0]]), "labels": torch.tensor([0])}] * 4
LEVELS = (LevelSpec("p8", 3, 8), LevelSpec("p16", 3, 16), LevelSpec("p32", 3, 32))
HALF = Layout(LEVELS, FRAME)
INT8 = HALF._replace(storage="int8")
ROOM = 10**9


class Neurons(Detector):
    """A detector of a few neurons that notes how many images it was given at a time."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.levels = tuple(level._replace(channels=channels) for level in LEVELS)
        self.class_names = ("thing",)
        self.stem = nn.Conv2d(3, channels, 4, stride=4)
        self.register_buffer("mean", torch.tensor(0.5), persistent=False)
        self.batches: list[int] = []

    def features(self, images: Tensor) -> FeaturePyramid:
        self.batches.append(len(images))
        finest = self.stem(images - self.mean)
        return {level.name: avg_pool2d(finest, level.stride // 4) for level in self.levels}

    def forward(self, images: Tensor, targets: Sequence[Target]) -> tuple[FeaturePyramid, dict[str, Tensor]]:
        pyramid = self.features(images)
        return pyramid, {"size": pyramid["p8"].square().mean()}

    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        raise NotImplementedError("nothing here detects")


def cached(layout: Layout = HALF, budget: int = ROOM, channels: int = 3) -> FrozenTeacher:
    teacher = FrozenTeacher(Neurons(channels), "big")
    teacher.cache = TeacherCache(RamStore(budget), layout)
    return teacher


def batches(teacher: FrozenTeacher) -> list[int]:
    assert isinstance(teacher.detector, Neurons)
    return teacher.detector.batches


def counts(teacher: FrozenTeacher) -> tuple[int, int]:
    assert teacher.cache is not None
    return teacher.cache.hits, teacher.cache.misses


# What is stored.


def test_float16_is_the_feature_rounded_to_eleven_bits() -> None:
    teacher = cached()
    assert_close(teacher.features(IMAGES, KEYS), teacher.features(IMAGES), rtol=2**-11, atol=2**-25)


def test_int8_is_within_half_a_step_of_each_channel() -> None:
    teacher = cached(INT8)
    live, stored = teacher.features(IMAGES), teacher.features(IMAGES, KEYS)
    for name, value in live.items():
        step = value.abs().amax((2, 3), keepdim=True) / 127
        assert bool(((stored[name] - value).abs() <= 0.5001 * step).all())
        assert not torch.equal(stored[name], value)


def test_int8_by_hand() -> None:
    value = torch.tensor([[0.0, 1.0], [-2.54, 0.011]]).view(1, 1, 2, 2)
    zero = torch.zeros(1, 1, 2, 2)
    layout = Layout((LevelSpec("p8", 2, 8),), (16, 16), storage="int8")
    (entry,) = encode({"p8": torch.cat([value, zero], dim=1)}, layout)
    assert entry["p8"][..., 0].tolist() == [[0, 50], [-127, 1]]
    assert entry["p8.scale"][0].item() == pytest.approx(0.02)
    found = decode([entry], layout)["p8"]
    assert found[0, 0].tolist() == [[0.0, pytest.approx(1.0)], [pytest.approx(-2.54), pytest.approx(0.02)]]
    assert not found[0, 1].any()


@pytest.mark.parametrize("layout", [HALF, INT8])
@pytest.mark.parametrize("frame", [(32, 64), (40, 72)])
def test_an_entry_has_the_size_of_its_layout(layout: Layout, frame: tuple[int, int]) -> None:
    levels = (LevelSpec("p8", 5, 8), LevelSpec("p16", 3, 16))
    layout = layout._replace(frame=frame, levels=levels)
    pyramid = {
        level.name: torch.rand(2, level.channels, -(-frame[0] // level.stride), -(-frame[1] // level.stride))
        for level in levels
    }
    entries = encode(pyramid, layout)
    assert [entry_bytes(entry) for entry in entries] == [layout.nbytes] * 2
    assert all(value.untyped_storage().nbytes() == value.nbytes for entry in entries for value in entry.values())


@pytest.mark.parametrize("layout", [HALF, INT8])
def test_features_are_float32_in_channels_last_memory(layout: Layout) -> None:
    for value in cached(layout).features(IMAGES, KEYS).values():
        assert value.dtype == torch.float32
        assert value.is_contiguous(memory_format=torch.channels_last)


def test_only_the_levels_of_the_layout_are_stored() -> None:
    teacher = cached(HALF._replace(levels=LEVELS[1:]))
    assert list(teacher.features(IMAGES, KEYS)) == ["p16", "p32"]


@pytest.mark.parametrize(("layout", "works"), [(HALF, False), (INT8, True)])
def test_values_beyond_float16_are_refused_by_level_and_fit_into_int8(layout: Layout, works: bool) -> None:
    teacher = cached(layout)
    with torch.no_grad():
        teacher.detector.stem.weight.fill_(-4e4)  # type: ignore[union-attr, operator]
    if works:
        live = teacher.features(IMAGES)["p8"]
        assert_close(teacher.features(IMAGES, KEYS)["p8"], live, rtol=0, atol=float(live.abs().max()) / 250)
        return
    with pytest.raises(DfmsdError, match=r"level p8 has a value of .*, which float16 cannot hold; set teacher_cache_d"):
        teacher.features(IMAGES, KEYS)
    assert counts(teacher) == (0, 0)


@pytest.mark.parametrize("layout", [HALF, INT8])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_features_are_refused(layout: Layout, value: float) -> None:
    pyramid = {level.name: torch.rand(1, 3, 4, 4) for level in LEVELS}
    pyramid["p32"][0, 1, 2, 3] = value
    with pytest.raises(DfmsdError, match=r"level p32 has a value of (nan|inf)"):
        encode(pyramid, layout)


# When it is computed.


@pytest.mark.parametrize("layout", [HALF, INT8])
def test_a_hit_returns_the_bits_of_the_miss_without_the_teacher(layout: Layout) -> None:
    teacher = cached(layout)
    first = teacher.features(IMAGES, KEYS)
    assert counts(teacher) == (0, 4)
    with torch.no_grad():
        teacher.detector.stem.weight.zero_()  # type: ignore[union-attr, operator]
    second = teacher.features(IMAGES, KEYS)
    assert counts(teacher) == (4, 4)
    assert batches(teacher) == [1] * 4
    assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("layout", [HALF, INT8])
def test_a_feature_does_not_depend_on_the_other_images_of_its_batch(layout: Layout) -> None:
    """As those of real networks do, in their last bits."""
    teacher = cached(layout)

    def compute(images: Tensor) -> FeaturePyramid:
        return {name: value + len(images) for name, value in teacher.detector.features(images).items()}

    whole, rest = (TeacherCache(RamStore(ROOM), layout) for _ in range(2))
    expected = whole(IMAGES, KEYS, compute)
    rest(IMAGES[:1], KEYS[:1], compute)
    found = rest(IMAGES[1:3], KEYS[1:3], compute)
    assert_close(found, {name: value[1:3] for name, value in expected.items()}, rtol=0, atol=0)


def test_only_the_missing_images_of_a_batch_are_computed() -> None:
    teacher, live = cached(), cached()
    teacher.features(IMAGES[1:3], KEYS[1:3])
    mixed = teacher.features(IMAGES, KEYS)
    assert batches(teacher) == [1] * 4
    live.detector.load_state_dict(teacher.detector.state_dict())
    assert_close(mixed, live.features(IMAGES), rtol=2**-10, atol=1e-6)
    assert counts(teacher) == (2, 4)


def test_an_image_without_key_is_computed_each_time_and_never_stored() -> None:
    teacher = cached()
    for _ in range(2):
        teacher.features(IMAGES, ("a", None, "c", None))
    assert batches(teacher) == [1] * 6
    store = teacher.cache.store  # type: ignore[union-attr]
    assert isinstance(store, RamStore)
    assert store.used == 2 * HALF.nbytes


def test_without_keys_the_teacher_computes_in_full_precision() -> None:
    teacher = cached()
    teacher.features(IMAGES, KEYS)
    assert_close(teacher.features(IMAGES), teacher.detector.features(IMAGES), rtol=0, atol=0)
    assert batches(teacher) == [1] * 4 + [4, 4]
    assert counts(teacher) == (0, 4)


def test_beyond_the_budget_features_are_computed_and_right() -> None:
    teacher = cached(budget=2 * HALF.nbytes)
    first = teacher.features(IMAGES, KEYS)
    second = teacher.features(IMAGES, KEYS)
    assert batches(teacher) == [1] * 6
    assert_close(first, second, rtol=0, atol=0)


def test_ram_and_disk_agree_to_the_bit(tmp_path: Path) -> None:
    ram = cached()
    disk = FrozenTeacher(ram.detector, "big")
    disk.cache = TeacherCache(DiskStore(tmp_path, ROOM), HALF)
    expected = ram.features(IMAGES, KEYS)
    assert_close(disk.features(IMAGES, KEYS), expected, rtol=0, atol=0)
    assert_close(disk.features(IMAGES, KEYS), expected, rtol=0, atol=0)
    assert counts(disk) == (4, 4)
    again = FrozenTeacher(Neurons(), "another process")
    again.cache = TeacherCache(DiskStore(tmp_path, ROOM), HALF)
    assert_close(again.features(IMAGES, KEYS), expected, rtol=0, atol=0)
    assert batches(again) == []


@pytest.mark.parametrize("foreign", [{"p8": torch.zeros(4, 8, 3)}, {}, "torn"])
def test_a_foreign_or_truncated_file_is_replaced(tmp_path: Path, foreign: object) -> None:
    teacher, store = cached(), DiskStore(tmp_path, ROOM)
    teacher.cache = TeacherCache(store, HALF)
    expected = teacher.features(IMAGES, KEYS)
    if isinstance(foreign, dict):
        store.put("b", foreign)
    else:
        (tmp_path / "b.safetensors").write_bytes((tmp_path / "b.safetensors").read_bytes()[:-5])
    for _ in range(2):
        assert_close(teacher.features(IMAGES, KEYS), expected, rtol=0, atol=0)
    assert batches(teacher) == [1] * 5


@pytest.mark.parametrize(
    "change",
    [
        {"levels": LEVELS[:2]},
        {"levels": tuple(level._replace(channels=4) for level in LEVELS)},
        {"storage": "int8"},
    ],
)
def test_an_entry_of_another_layout_is_not_used(change: dict[str, object]) -> None:
    other = HALF._replace(**change)  # type: ignore[arg-type]
    pyramid = {level.name: torch.rand(1, level.channels, 4, 4) for level in other.levels}
    (entry,) = encode(pyramid, other)
    assert other.holds(entry)
    assert not HALF.holds(entry)


def test_another_frame_or_dtype_than_planned_is_refused() -> None:
    teacher = cached()
    with pytest.raises(DfmsdError, match=r"built for images of \(32, 64\) in torch.float32, got \(32, 32\) in"):
        teacher.features(IMAGES[..., :32], KEYS)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(DfmsdError, match=r"got .* in torch.bfloat16; build ano"):
        teacher.features(IMAGES, KEYS)
    teacher.cache = TeacherCache(RamStore(ROOM), HALF._replace(compute_dtype=torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        assert teacher.features(IMAGES, KEYS)["p8"].dtype == torch.float32


def test_a_flipped_image_has_its_own_entry() -> None:
    image = torch.randint(0, 256, (3, 32, 50), dtype=torch.uint8)
    target = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    sample = Sample(image, target, (1.0, 1.0), 0, digest=pixel_digest(image))
    plain, flipped = collate([sample], 64), collate([hflip(sample)], 64)
    teacher = cached(HALF._replace(frame=(64, 64)))
    for batch in (plain, flipped, plain, flipped):
        found = teacher.features(batch.images, batch.keys)["p8"]
        assert_close(found, teacher.features(batch.images)["p8"], rtol=2**-10, atol=1e-6)
    assert counts(teacher) == (2, 2)
    assert not torch.allclose(found, teacher.features(plain.images, plain.keys)["p8"].flip(-1), atol=1e-2)


# The content address.


def change_weight(detector: Neurons) -> None:
    detector.stem.weight.data[0, 0, 0, 0] += 1e-6


def change_mean(detector: Neurons) -> None:
    detector.mean += 1e-3


def change_architecture(detector: Neurons) -> None:
    detector.stem.stride = (2, 2)


@pytest.mark.parametrize("change", [change_weight, change_mean, change_architecture])
def test_another_model_has_another_namespace(change: object) -> None:
    detector = Neurons()
    changed = copy.deepcopy(detector)
    change(changed)  # type: ignore[operator]
    assert namespace(detector, HALF) != namespace(changed, HALF)


def test_another_layout_has_another_namespace() -> None:
    detector = Neurons()
    layouts = [
        HALF,
        INT8,
        HALF._replace(frame=(64, 32)),
        HALF._replace(levels=LEVELS[:2]),
        HALF._replace(compute_dtype=torch.bfloat16),
    ]
    assert len({namespace(detector, layout) for layout in layouts}) == len(layouts)


@pytest.mark.parametrize("arch", ["fcos", "faster_rcnn", "retinanet", "gfl"])
def test_the_same_detector_built_again_has_the_same_namespace(arch: str) -> None:
    config = DetectorConfig(arch, TINY_BACKBONE, fpn_channels=16, head_convs=1)  # type: ignore[arg-type]
    detector, again = (build_detector(config, ["thing"]) for _ in range(2))
    assert namespace(detector, HALF) != namespace(again, HALF)
    again.load_state_dict(detector.state_dict())
    again.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert namespace(detector, HALF) == namespace(again, HALF)
    again.model.transform.image_mean = [0.0, 0.0, 0.0]  # type: ignore[union-attr, assignment]
    assert namespace(detector, HALF) != namespace(again, HALF)


# In a task.


def plan(*teachers: FrozenTeacher | None, **loss: object) -> DistillationTask:
    stages = [StageConfig(1, None if teacher is None else teacher.name) for teacher in teachers]
    torch.manual_seed(3)
    together = [() if teacher is None else (teacher,) for teacher in teachers]
    return DistillationTask(Neurons(2), stages, together, {"name": "dfmsd", **loss})


def gradients(task: DistillationTask, keys: Sequence[str]) -> tuple[dict[str, Tensor], list[Tensor]]:
    torch.manual_seed(7)
    named = task(IMAGES, TARGETS, keys)
    loss = torch.stack(list(named.values())).sum()
    return named, list(torch.autograd.grad(loss, list(task.trainable.parameters())))


@pytest.mark.parametrize(("layout", "rtol"), [(HALF, 1e-3), (INT8, 2e-2)])
def test_losses_and_gradients_of_a_step_stay_the_same(layout: Layout, rtol: float) -> None:
    teacher = cached(layout)
    # masks are drawn: else one rounded attention could choose another cell
    task = plan(teacher, direction="random")
    expected, expected_gradients = gradients(task, ())
    for _ in range(2):
        named, found = gradients(task, KEYS)
        assert_close(named, expected, rtol=rtol, atol=1e-6)
        ours, theirs = (torch.cat([g.flatten() for g in gradient]) for gradient in (found, expected_gradients))
        # standardising a map of two cells makes a rounding error large
        assert float((ours - theirs).norm()) <= 10 * rtol * float(theirs.norm())
    assert counts(teacher) == (4, 4)


def test_a_stage_frees_the_ram_of_teachers_that_it_does_not_use() -> None:
    first, second = cached(), cached()
    task = plan(first, second)
    task.enter_stage(0)
    task(IMAGES, TARGETS, KEYS)
    used = first.cache.store.used  # type: ignore[union-attr]
    assert used == 4 * HALF.nbytes
    task.enter_stage(1)
    assert first.cache.store.used == 0  # type: ignore[union-attr]


def test_features_stay_the_same_when_another_teacher_joins() -> None:
    first, second = cached(), cached(channels=3)
    stages = [StageConfig(1, "one"), StageConfig(1, ["one", "two"]), StageConfig(1, "two")]
    task = DistillationTask(Neurons(2), stages, [[first], [first, second], [second]], {"name": "dfmsd"})
    for index in range(3):
        task.enter_stage(index)
        task(IMAGES, TARGETS, KEYS)
    assert (batches(first), batches(second)) == ([1] * 4, [1] * 4)
    assert (first.cache.store.used, second.cache.store.used) == (0, 4 * HALF.nbytes)  # type: ignore[union-attr]


def test_a_stage_lists_the_levels_in_use() -> None:
    first, second = FrozenTeacher(Neurons(), "one"), FrozenTeacher(Neurons(), "two")
    second.detector.levels = (*LEVELS[:2], LevelSpec("p64", 3, 64))
    task = plan(first, None, second, second, first)
    levels = [
        {teacher.name: {level.name for level in used} for teacher, used in task.levels_in_use(index).items()}
        for index in range(5)
    ]
    assert levels == [
        {"one": {"p8", "p16", "p32"}},
        {},
        {"two": {"p8", "p16"}},
        {"two": {"p8", "p16"}},
        {"one": {"p8", "p16", "p32"}},
    ]
