from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dfmsd.data import CocoDataModule, DataConfig
from dfmsd.detectors import load_detector
from dfmsd.distillation.stages import StageConfig
from dfmsd.distillation.task import DistillationTask
from dfmsd.engine import teachercache as module
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.fit import Result
from dfmsd.engine.interrupt import StopOnInterrupt
from dfmsd.engine.preflight import preflight
from dfmsd.engine.run import build_task, check, distill
from dfmsd.engine.teachercache import CachePlan, hits_and_misses, open_caches, plan_caches
from dfmsd.errors import DfmsdError
from dfmsd.utils.cachedir import MARKER
from dfmsd.utils.store import DiskStore, RamStore

MakeDistill = Callable[..., DistillConfig]
FIRST = sum(32 * side**2 for side in (8, 4, 2, 1))
"""Values of an image of 64 px on the levels that the one-stage teacher shares with the student: p3 to p6 ..."""
FIRST += 32
"""... and p7, smaller than its stride."""
SECOND = sum(16 * side**2 for side in (16, 8, 4, 2, 1))
"""The same of the two-stage teacher, p2 to p6."""


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DFMSD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "teachers"


@pytest.fixture
def planned(task: DistillationTask, distill_config: MakeDistill, tmp_path: Path) -> Callable[..., CachePlan]:
    def plan(kind: str = "ram", **values: Any) -> CachePlan:
        config = distill_config(tmp_path / "run", teacher_cache=kind, **values)
        found = plan_caches(task, config, 8)
        assert found is not None
        return found

    return plan


def test_the_plan_counts_images_flips_and_levels(planned: Callable[..., CachePlan], tiny_root: Path) -> None:
    plan = planned()
    assert [layout.nbytes for layout in plan.layouts.values()] == [2 * FIRST, 2 * SECOND]
    assert plan.need == 8 * 2 * 2 * SECOND  # in RAM one stage at a time
    assert planned("disk").need == 8 * 2 * 2 * (FIRST + SECOND)
    assert planned(data=DataConfig(str(tiny_root), image_size=64, flip=1.0)).need == 8 * 2 * SECOND
    assert planned(teacher_cache_dtype="int8").need == 8 * 2 * (SECOND + 4 * 16 * 5)
    assert planned(precision="bf16").layouts[next(iter(plan.layouts))].compute_dtype == torch.bfloat16


def test_no_cache_is_planned_without_a_setting_or_a_teacher(
    task: DistillationTask, distill_config: MakeDistill, tmp_path: Path
) -> None:
    assert plan_caches(task, distill_config(tmp_path), 8) is None
    config = distill_config(tmp_path, teacher_cache="ram", stages=[StageConfig(epochs=1)])
    assert plan_caches(build_task(config, ("square", "disc")), config, 8) is None


def test_the_summary_states_size_budget_and_kept_share(
    planned: Callable[..., CachePlan], monkeypatch: pytest.MonkeyPatch, tiny_teachers: tuple[str, str]
) -> None:
    line = str(planned())
    assert line.startswith("teacher cache: 0.000 GiB of RAM, budget 8.0 GiB (8 images x 2 version(s); an image of ")
    assert f"{tiny_teachers[0]} {2 * FIRST / 1024:.1f} KiB, {tiny_teachers[1]} {2 * SECOND / 1024:.1f} KiB)" in line
    tight = planned(teacher_cache_gib=8 * 2 * 2 * SECOND / 2**31)
    assert "; only 50% of it is kept, the rest is computed in every epoch (" in str(tight)
    need = 8 * 2 * 2 * (FIRST + SECOND)
    monkeypatch.setattr(module, "free_bytes", lambda _: need // 4)
    assert "cache/teachers (0.0 GiB free), budget 8.0 GiB; only 25% of it is kept" in str(planned("disk"))


@pytest.mark.parametrize(("kind", "gib", "share"), [("ram", 8.0, 0.5), ("disk", 8.0, 1.0), ("disk", 1e-6, 0.5)])
def test_processes_share_the_budget(planned: Callable[..., CachePlan], kind: str, gib: float, share: float) -> None:
    alone = planned(kind, teacher_cache_gib=gib)
    assert planned(kind, teacher_cache_gib=gib, devices=2).room == int(alone.room * share)


def test_processes_of_torchrun_share_the_budget(
    planned: Callable[..., CachePlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = planned()
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    assert planned().room == alone.room // 4


def test_opening_divides_the_room_by_need(planned: Callable[..., CachePlan], cache_folder: Path) -> None:
    gib = (FIRST + SECOND) / 2**30
    plan = planned("disk", teacher_cache_gib=gib)
    open_caches(plan)
    stores = [teacher.cache.store for teacher in plan.layouts if teacher.cache]
    assert all(isinstance(store, DiskStore) for store in stores)
    assert [store.budget for store in stores] == pytest.approx([FIRST, SECOND], abs=1)  # type: ignore[attr-defined]
    assert {path.name for path in cache_folder.iterdir()} == {store.folder.name for store in stores}  # type: ignore[attr-defined]
    open_caches(planned("ram"))
    assert all(isinstance(teacher.cache.store, RamStore) for teacher in plan.layouts if teacher.cache)


def test_opening_evicts_other_teachers_only_if_needed(planned: Callable[..., CachePlan], cache_folder: Path) -> None:
    other = DiskStore(cache_folder / "other", 10**6)
    other.put("a", {"p8": torch.zeros(1000)})
    open_caches(planned("disk"))
    assert other.get("a") is not None
    plan = planned("disk", teacher_cache_gib=8 * 2 * 2 * (FIRST + SECOND) / 2**30)
    del other  # a store is not evicted while it is open
    open_caches(plan)
    assert not (cache_folder / "other").exists()
    assert len(list(cache_folder.glob(f"*/{MARKER}"))) == 2


def test_the_preflight_lists_the_cache_and_refuses_values_that_cannot_be_stored(
    planned: Callable[..., CachePlan], task: DistillationTask, tiny_root: Path, tiny_teachers: tuple[str, str]
) -> None:
    data = CocoDataModule(DataConfig(str(tiny_root), image_size=64, batch_size=4))
    plan = planned()
    found = preflight(task, data, images=1, allow_weak_teacher=True, cache=plan)
    assert found.cache == str(plan)
    convolution = [m for m in next(iter(plan.layouts)).detector.model.backbone.fpn.layer_blocks.modules()]  # type: ignore[union-attr]
    last = next(m for m in convolution if isinstance(m, nn.Conv2d))
    with torch.no_grad():
        last.weight *= 1e8
    with pytest.raises(
        DfmsdError, match=rf"teacher {tiny_teachers[0]}: teacher_cache: level p3 has a value of .*float"
    ):
        preflight(task, data, images=1, allow_weak_teacher=True, cache=plan)


# Real runs.


def teacher_passes(monkeypatch: pytest.MonkeyPatch, config: DistillConfig, **options: Any) -> tuple[Result, int]:
    """Run, and count the forward passes of all teachers' networks during the training."""
    detectors = {name: load_detector(name) for name in {name for stage in config.stages for name in stage.teachers}}
    calls: list[nn.Module] = []

    class Counting(StopOnInterrupt):
        def on_train_start(self, *args: Any, **kwargs: Any) -> None:
            for detector in detectors.values():
                detector.model.backbone.register_forward_hook(lambda network, *_: calls.append(network))  # type: ignore[union-attr]
            super().on_train_start(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("dfmsd.engine.fit.StopOnInterrupt", Counting)
        return distill(config, allow_weak_teacher=True, check_images=1, teachers=detectors, **options), len(calls)


def weights(result: Result) -> dict[str, Tensor]:
    return load_file(result.run / "student.safetensors")


def identical(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.fixture
def short(distill_config: MakeDistill, tiny_root: Path, tmp_path: Path) -> Callable[..., DistillConfig]:
    """Two stages; nothing is flipped, so that the first epoch of a stage shows all that the next ones do."""

    def build(name: str, kind: str, epochs: tuple[int, int]) -> DistillConfig:
        data = DataConfig(str(tiny_root), image_size=64, batch_size=4, flip=0.0)
        config = distill_config(tmp_path / name, data=data, teacher_cache=kind, eval_every=9)
        return replace(config, stages=[replace(s, epochs=n) for s, n in zip(config.stages, epochs, strict=True)])

    return build


@pytest.mark.slow
def test_runs_share_the_cache_and_do_not_call_the_teacher_again(
    short: Callable[..., DistillConfig],
    cache_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, passes = teacher_passes(monkeypatch, short("first", "disk", (2, 1)))
    assert passes == 8 + 8  # of the images, one by one: the first epoch of each stage
    said = " ".join(capsys.readouterr().err.split())
    assert "teacher cache: features of 8 images found, of 16 computed" in said
    again, passes = teacher_passes(monkeypatch, short("again", "disk", (2, 1)))
    assert passes == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "teacher cache: features of 24 images found, of 0 computed" in said
    assert "GiB free), budget 8.0 GiB (8 images x 1 version(s);" in said
    assert identical(weights(first), weights(again))
    assert len(list(cache_folder.iterdir())) == 2
    assert len(list(cache_folder.glob("*/*.safetensors"))) == 16
    ram, passes = teacher_passes(monkeypatch, short("ram", "ram", (2, 1)))
    assert passes == 8 + 8
    assert identical(weights(first), weights(ram))


@pytest.mark.slow
def test_a_killed_run_with_a_cache_resumes_to_the_same_bits(
    short: Callable[..., DistillConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killing(StopOnInterrupt):
        def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
            if trainer.global_step == 3:
                raise RuntimeError("the power went off")

    config = short("killed", "disk", (1, 1))
    with monkeypatch.context() as patch:
        patch.setattr("dfmsd.engine.fit.StopOnInterrupt", Killing)
        with pytest.raises(RuntimeError, match="power"):
            distill(config, allow_weak_teacher=True, check_images=1)
    resumed, passes = teacher_passes(monkeypatch, config, resume=True)
    assert passes == 4  # the first step of the second stage had been stored
    whole, passes = teacher_passes(monkeypatch, short("whole", "disk", (1, 1)))
    assert passes == 0
    assert resumed.metrics == whole.metrics
    assert identical(weights(resumed), weights(whole))


def test_check_plans_and_writes_nothing(distill_config: MakeDistill, tmp_path: Path, cache_folder: Path) -> None:
    config = distill_config(tmp_path / "run", teacher_cache="disk")
    found = check(config, allow_weak_teacher=True, check_images=1)
    assert found.cache is not None
    assert "GiB free), budget 8.0 GiB (8 images x 2 version(s); an image of" in found.cache
    assert not cache_folder.exists()
    assert not (tmp_path / "run").exists()


def test_a_cache_folder_that_cannot_be_written_is_refused_before_training(
    distill_config: MakeDistill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DFMSD_CACHE", str(tmp_path / "file"))
    config = distill_config(tmp_path / "run", teacher_cache="disk")
    with pytest.raises(DfmsdError, match="set DFMSD_CACHE to a writable folder"):
        distill(config, allow_weak_teacher=True, check_images=1)
    assert not (tmp_path / "run").exists()


def test_hits_and_misses_sums_over_teachers(planned: Callable[..., CachePlan]) -> None:
    plan = planned()
    open_caches(plan)
    for teacher in plan.layouts:
        teacher.features(torch.rand(3, 3, 64, 64), ("a", "b", None))
        teacher.features(torch.rand(3, 3, 64, 64), ("a", "b", None))
    assert hits_and_misses(plan) == "teacher cache: features of 4 images found, of 8 computed"
