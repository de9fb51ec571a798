"""Size and location of a run's teacher caches, planned before the first step."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

from dfmsd.distillation.cache import Layout, TeacherCache, encode, namespace
from dfmsd.distillation.task import DistillationTask
from dfmsd.distillation.teacher import FrozenTeacher
from dfmsd.engine.config import DistillConfig
from dfmsd.errors import DfmsdError
from dfmsd.utils.cachedir import GIB, cache_root, folder_bytes, free_bytes, make_room
from dfmsd.utils.store import DiskStore, RamStore, Store


class CachePlan(NamedTuple):
    """The caches of a run."""

    kind: Literal["ram", "disk"]
    layouts: dict[FrozenTeacher, Layout]
    images: int
    versions: int
    """Versions of each image: 2 with random flips."""
    need: int
    """Bytes required at a time: on disk those of all teachers, in RAM those of one stage."""
    budget: int
    room: int
    """Bytes available to this process."""

    def size(self, teacher: FrozenTeacher) -> int:
        """Return the bytes of all images of a teacher."""
        return self.images * self.versions * self.layouts[teacher].nbytes

    def __str__(self) -> str:
        place = "RAM"
        if self.kind == "disk":
            place = f"{cache_root() / 'teachers'} ({free_bytes(cache_root()) / GIB:.1f} GiB free)"
        each = ", ".join(f"{teacher.name} {layout.nbytes / 1024:.1f} KiB" for teacher, layout in self.layouts.items())
        fits = (
            ""
            if self.need <= self.room
            else f"; only {self.room / self.need:.0%} of it is kept, the rest is computed in every epoch"
        )
        return (
            f"teacher cache: {self.need / GIB:.3f} GiB of {place}, budget {self.budget / GIB:.1f} GiB{fits} "
            f"({self.images} images x {self.versions} version(s); an image of {each})"
        )


def plan_caches(task: DistillationTask, config: DistillConfig, images: int) -> CachePlan | None:
    """Plan the caches of a run for the levels that its losses use; None without a cache or teacher in the config.

    Args:
        task: the run's task.
        config: the run.
        images: number of training images.
    """
    if config.teacher_cache is None:
        return None
    stages = [task.levels_in_use(index) for index in range(len(task.stages))]
    teachers = {teacher: None for used in stages for teacher in used}  # in order, each once
    if not teachers:
        return None
    side = config.teacher_size or config.data.image_size
    layouts = {}
    for teacher in teachers:
        used_levels = set().union(*(used.get(teacher, set()) for used in stages))
        levels = tuple(level for level in teacher.detector.levels if level in used_levels)
        layouts[teacher] = Layout(levels, (side, side), config.teacher_dtype, config.teacher_cache_dtype)
    versions = config.data.versions(config.epochs) or 1
    sizes = {teacher: images * versions * layout.nbytes for teacher, layout in layouts.items()}
    need = sum(sizes.values())
    budget = room = int(config.teacher_cache_gib * GIB)
    if config.teacher_cache == "ram":
        need = max(sum(sizes[teacher] for teacher in used) for used in stages)
    else:
        room = min(budget, free_bytes(cache_root()) + folder_bytes(cache_root() / "teachers"))
    if config.teacher_cache == "ram" or need > room:  # on disk the processes share what fits completely
        room //= config.processes[0]
    return CachePlan(config.teacher_cache, layouts, images, versions, need, budget, room)


def open_caches(plan: CachePlan) -> None:
    """Attach a cache to each teacher; on disk, evict other teachers' caches if space is needed.

    Raises:
        DfmsdError: the folder cannot be written to.
    """
    names = {teacher: namespace(teacher.detector, layout) for teacher, layout in plan.layouts.items()}
    root, room = cache_root() / "teachers", plan.room
    if plan.kind == "disk":
        room = min(room, make_room(root, set(names.values()), min(plan.need, room), plan.budget))
    for teacher, layout in plan.layouts.items():
        share = int(room * plan.size(teacher) / plan.need)
        store: Store = RamStore(share) if plan.kind == "ram" else DiskStore(root / names[teacher], share)
        teacher.cache = TeacherCache(store, layout)


def try_out(plan: CachePlan, images: Tensor) -> None:
    """Refuse a teacher whose features cannot be stored.

    Raises:
        DfmsdError: names teacher and level.
    """
    for teacher, layout in plan.layouts.items():
        try:
            encode(teacher.features(images), layout)
        except DfmsdError as error:
            raise DfmsdError(f"teacher {teacher.name}: {error}") from error


def hits_and_misses(plan: CachePlan) -> str:
    """Summarize in one line how many images' features were found and computed."""
    caches = [teacher.cache for teacher in plan.layouts if teacher.cache is not None]
    hits, misses = sum(cache.hits for cache in caches), sum(cache.misses for cache in caches)
    return f"teacher cache: features of {hits} images found, of {misses} computed"
