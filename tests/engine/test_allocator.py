from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from dfmsd.engine.allocator import keep_freed_memory

on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is not used here")


CHURN = """
import resource, sys, types

if sys.argv[1] == "tensors":
    import torch
    torch.set_num_threads(1)
    make = lambda: torch.ones(16 * 2**20)
else:  # of plain memory, without the seconds that the import of torch takes
    sys.modules["torch"] = types.SimpleNamespace(cuda=types.SimpleNamespace(is_available=lambda: False))
    make = lambda: b"x" * (64 * 2**20)

from dfmsd.engine.allocator import keep_freed_memory

def churn():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        make()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

default = min(churn() for _ in range(4))  # after the heap has settled
print(int(keep_freed_memory()), default, min(churn() for _ in range(4)))
"""
"""Allocates and frees 64 MiB, more than glibc ever learns to keep, and counts the page faults: before and after."""


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"):
        monkeypatch.delenv(name, raising=False)
    for name in ("GLIBC_TUNABLES", "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)


@on_glibc
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the allocator is left alone")
@pytest.mark.parametrize("kind", ["bytes", pytest.param("tensors", marks=pytest.mark.slow)])
def test_freed_memory_is_reused_without_page_faults(kind: str) -> None:
    done = subprocess.run([sys.executable, "-c", CHURN, kind], capture_output=True, check=True, text=True)
    answer, default, kept = map(int, done.stdout.split())
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
