from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import shutil
import sys
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import IO

import pytest
from tests.helpers.entries import BYTES, entry, same

from dfmsd.utils import cachedir
from dfmsd.utils.cachedir import MARKER, cache_root, folder_bytes, free_bytes, make_room, open_folder
from dfmsd.utils.store import DiskStore

KEYS = ("a", "b", "c")
needs_locks = pytest.mark.skipif(sys.platform == "win32", reason="there is no flock on Windows")


def names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def test_the_cache_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DFMSD_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.setenv("DFMSD_CACHE", "")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_root() == Path("/home/somebody/.cache/dfmsd")


def test_the_least_recently_opened_stores_of_others_are_evicted(tmp_path: Path) -> None:
    for age, name in enumerate(("own", "oldest", "older", "newest")):
        DiskStore(tmp_path / name, BYTES * 2).put("a", entry())
        os.utime(tmp_path / name / MARKER, (1000 + age, 1000 + age))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "file").write_bytes(b"x" * 5 * BYTES)
    size = folder_bytes(tmp_path / "newest")
    everything = {"own", "oldest", "older", "newest", "foreign"}
    assert make_room(tmp_path, {"own"}, need=BYTES, budget=BYTES + 3 * size) == BYTES
    assert names(tmp_path) == everything
    assert make_room(tmp_path, {"own"}, need=BYTES, budget=BYTES + 3 * size - 1) == BYTES + size - 1
    assert names(tmp_path) == everything - {"oldest"}
    assert make_room(tmp_path, {"own"}, need=2 * BYTES, budget=2 * BYTES) == 2 * BYTES
    assert names(tmp_path) == {"own", "foreign"}


def test_opening_a_store_makes_it_the_most_recent(tmp_path: Path) -> None:
    for name in ("a", "b"):
        DiskStore(tmp_path / name, 2 * BYTES).put("a", entry())
        os.utime(tmp_path / name / MARKER, (1000, 1000))
    DiskStore(tmp_path / "a", BYTES)
    make_room(tmp_path, set(), need=0, budget=folder_bytes(tmp_path / "a"))
    assert names(tmp_path) == {"a"}


def test_a_folder_that_does_not_exist_has_room(tmp_path: Path) -> None:
    assert make_room(tmp_path / "none", {"own"}, need=5, budget=7) == 7
    assert folder_bytes(tmp_path / "none") == 0
    assert free_bytes(tmp_path / "none" / "below") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.01)


@needs_locks
def test_an_open_store_is_not_evicted_and_counts_towards_the_budget(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = DiskStore(tmp_path / "open", 10 * BYTES)
    store.put("a", entry())
    DiskStore(tmp_path / "closed", 10 * BYTES).put("a", entry())
    size = folder_bytes(tmp_path / "open")
    with caplog.at_level(logging.WARNING, "dfmsd"):
        assert make_room(tmp_path, {"own"}, need=3 * BYTES, budget=size + BYTES) == BYTES
        assert make_room(tmp_path, {"own"}, need=3 * BYTES, budget=size - 1) == 0
    assert names(tmp_path) == {"open"}
    assert same(store.get("a"), entry())
    assert all("open (0.00 GiB) is in use by another run" in record.getMessage() for record in caplog.records)
    assert len(caplog.records) == 2
    copy = pickle.loads(pickle.dumps(store))  # as for loader workers, which do not outlive the run
    del store
    assert same(copy.get("a"), entry())
    make_room(tmp_path, set(), need=0, budget=0)
    assert names(tmp_path) == set()


def _run(root: Path, name: str, filled: Barrier, checked: Barrier, finish: Event) -> None:
    store = DiskStore(root / name, 10 * BYTES)
    for key in KEYS:
        store.put(key, entry())
    filled.wait(30)
    make_room(root, {name}, need=3 * BYTES, budget=5 * BYTES)  # too little for both
    checked.wait(30)
    assert all(same(store.get(key), entry()) for key in KEYS)
    finish.wait(30)


@needs_locks
def test_two_runs_at_once_keep_their_stores_until_they_end(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    filled, checked, finish = context.Barrier(2), context.Barrier(3), {name: context.Event() for name in "ab"}
    runs = {name: context.Process(target=_run, args=(tmp_path, name, filled, checked, finish[name])) for name in finish}
    for run in runs.values():
        run.start()
    checked.wait(30)
    for name, others in (("a", {"b"}), ("b", set())):
        finish[name].set()
        runs[name].join(30)
        assert runs[name].exitcode == 0
        make_room(tmp_path, set(), need=0, budget=0)
        assert names(tmp_path) == others


@needs_locks
def test_a_folder_that_is_evicted_while_it_is_opened_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, evictions = cachedir._lock, iter(range(2))

    def lock(file: IO[bytes], *, shared: bool) -> bool | None:
        if shared and next(evictions, None) is not None:
            shutil.rmtree(tmp_path / "store")
        return original(file, shared=shared)

    monkeypatch.setattr(cachedir, "_lock", lock)
    file = open_folder(tmp_path / "store")
    assert file is not None
    make_room(tmp_path, set(), need=1, budget=0)
    assert (tmp_path / "store" / MARKER).exists()
    file.close()
    make_room(tmp_path, set(), need=1, budget=0)
    assert names(tmp_path) == set()


def test_without_file_locks_stores_work_and_are_evicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cachedir, "_lock", lambda *_, **__: None)
    store = DiskStore(tmp_path / "store", 10 * BYTES)
    store.put("a", entry())
    assert same(store.get("a"), entry())
    assert make_room(tmp_path, set(), need=0, budget=0) == 0
    assert names(tmp_path) == set()
