from __future__ import annotations

import multiprocessing as mp
import platform
import resource
from typing import Any

import pytest
import torch

from dfmsd.engine.allocator import keep_freed_memory

on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is not in use here")


def churn() -> int:
    """Make and drop tensors of 64 MiB, more than glibc ever learns to keep; gives the page faults."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(16 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def compare(results: Any) -> None:
    """Churn with glibc's thresholds and with ours, each time after a first round."""
    torch.set_num_threads(1)
    default = [churn(), churn()][1]
    answer = keep_freed_memory()
    results.send((answer, default, [churn(), churn()][1]))


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"):
        monkeypatch.delenv(name, raising=False)
    for name in ("GLIBC_TUNABLES", "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)


@on_glibc
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the allocator is left alone")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    context = mp.get_context("spawn")  # a fork would begin with the free memory of this process, and fault for none
    ours, theirs = context.Pipe()
    child = context.Process(target=compare, args=(theirs,))
    child.start()
    assert ours.poll(60)
    answer, default, kept = ours.recv()
    child.join()
    assert answer
    assert default >= 5  # at the very least one huge page each
    assert kept < default / 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MALLOC_TRIM_THRESHOLD_", "131072"),
        ("GLIBC_TUNABLES", "glibc.malloc.mmap_max=0"),
        ("LD_PRELOAD", "libjemalloc.so.2"),
    ],
)
def test_a_users_own_settings_stay(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert not keep_freed_memory()


@pytest.mark.parametrize("library", [("musl", "1.2.4"), ("", "")])
def test_other_c_libraries_are_left_alone(library: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: library)
    assert not keep_freed_memory()


def test_a_machine_with_a_gpu_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not keep_freed_memory()
