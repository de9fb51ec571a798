from __future__ import annotations

import logging
import multiprocessing
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from tests.helpers.entries import BYTES, entry, same

from dfmsd.errors import DfmsdError
from dfmsd.utils.cachedir import MARKER, folder_bytes
from dfmsd.utils.store import DiskStore, Entry, RamStore, Store, entry_bytes


@pytest.fixture(params=["ram", "disk"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return RamStore(10 * BYTES) if request.param == "ram" else DiskStore(tmp_path / "store", 10 * BYTES)


def test_an_entry_is_found_under_its_key_only(store: Store) -> None:
    assert store.get("abc1") is None
    store.put("abc1", entry(1))
    store.put("abc1-flip", entry(2))
    assert same(store.get("abc1"), entry(1))
    assert same(store.get("abc1-flip"), entry(2))
    assert store.get("abc2") is None


def test_a_full_store_keeps_its_entries(store: Store) -> None:
    for index in range(12):
        store.put(f"{index}", entry(index))
    found = [store.get(f"{index}") is not None for index in range(12)]
    assert found == [True] * 10 + [False] * 2


def test_a_released_ram_store_is_empty_and_can_be_filled_again() -> None:
    store = RamStore(2 * BYTES)
    for keys in ("ab", "cd"):
        for key in keys:
            store.put(key, entry())
        assert store.used == 2 * BYTES
        store.release()
        assert store.used == 0
        assert [store.get(key) for key in keys] == [None, None]


def test_an_entry_counts_once_in_ram() -> None:
    store = RamStore(10 * BYTES)
    for _ in range(3):
        store.put("a", entry())
    assert store.used == BYTES


def test_files_of_earlier_runs_are_found_and_count_towards_the_budget(tmp_path: Path) -> None:
    first = DiskStore(tmp_path, 5 * BYTES)
    for index in range(3):
        first.put(f"{index}", entry(index))
    first.release()
    second = DiskStore(tmp_path, 5 * BYTES)
    assert same(second.get("2"), entry(2))
    assert second.used == folder_bytes(tmp_path) > 3 * BYTES
    for index in range(3, 9):
        second.put(f"{index}", entry())
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    assert folder_bytes(tmp_path) <= 5 * BYTES


@pytest.mark.parametrize("key", ["../a", "a/b", "A", "a.b", "", "/etc/a"])
def test_keys_cannot_leave_the_folder(tmp_path: Path, key: str) -> None:
    store = DiskStore(tmp_path / "store", BYTES)
    with pytest.raises(ValueError, match="must consist of lowercase letters"):
        store.put(key, entry())
    with pytest.raises(ValueError, match="must consist of lowercase letters"):
        store.get(key)


@pytest.mark.parametrize("damage", [lambda whole: whole[:-1], lambda whole: b"", lambda whole: b"no tensors here"])
def test_a_damaged_file_counts_as_missing_and_is_written_again(tmp_path: Path, damage: object) -> None:
    store = DiskStore(tmp_path, 10 * BYTES)
    store.put("a", entry(3))
    file = tmp_path / "a.safetensors"
    file.write_bytes(damage(file.read_bytes()))  # type: ignore[operator]
    assert store.get("a") is None
    store.put("a", entry(3))
    assert same(store.get("a"), entry(3))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_a_full_disk_is_reported_once_and_stops_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    store = DiskStore(tmp_path, 10 * BYTES)
    store.put("a", entry(1))

    def fail(_: Entry, file: Path) -> None:
        file.write_bytes(b"half")
        raise error

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with caplog.at_level(logging.WARNING, "dfmsd"):
        store.put("b", entry())
        store.put("c", entry())
    assert [record.getMessage().count("No space left on device") for record in caplog.records] == [1]
    monkeypatch.undo()
    store.put("d", entry())
    assert {path.name for path in tmp_path.iterdir()} == {MARKER, "a.safetensors"}
    assert same(store.get("a"), entry(1))


def test_an_unwritable_folder_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DfmsdError, match=r"cannot write to .*file/store .*; set DFMSD_CACHE to a writable folder"):
        DiskStore(tmp_path / "file" / "store", BYTES)


def _write(folder: Path, value: int, times: int) -> None:
    store = DiskStore(folder, 10**9)
    for _ in range(times):
        store.put("shared", entry(value))


def test_processes_may_write_one_key_while_others_read_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(tmp_path, value, 60)) for value in (1, 2)]
    store, seen = DiskStore(tmp_path, 10**9), 0
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        found = store.get("shared")
        if found is not None:
            assert same(found, entry(int(found["b"][0])))
            seen += 1
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert seen
    assert {path.name for path in tmp_path.iterdir()} == {MARKER, "shared.safetensors"}


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 100), max_size=12), budget=st.integers(0, 400))
def test_both_stores_keep_the_entries_that_fit_in_order(sizes: list[int], budget: int) -> None:
    entries = {f"{index}": {"x": torch.full((size,), index, dtype=torch.uint8)} for index, size in enumerate(sizes)}
    expected: dict[str, Entry] = {}
    for key, value in entries.items():
        if sum(map(entry_bytes, expected.values())) + entry_bytes(value) <= budget:
            expected[key] = value
    with tempfile.TemporaryDirectory() as folder:
        for store in (RamStore(budget), DiskStore(Path(folder), budget)):
            for key, value in entries.items():
                store.put(key, value)
            for key in entries:
                assert same(store.get(key), expected[key]) if key in expected else store.get(key) is None
            assert store.used == sum(map(entry_bytes, expected.values()))
