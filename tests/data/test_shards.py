from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.helpers.layouts import SPLITS, close, coco, read
from tests.helpers.range_server import Requests, serve

from dfmsd.cli.main import run
from dfmsd.data import CocoDataModule, DataConfig, open_split, remote
from dfmsd.data.convert import convert
from dfmsd.data.images import read_image
from dfmsd.data.shards import read_index
from dfmsd.data.shardwriter import write_shards
from dfmsd.data.splitcheck import find_copies
from dfmsd.errors import DfmsdError
from dfmsd.exporting.images import compared_files, images_root
from dfmsd.types import Batch


@pytest.fixture
def shards(tiny_root: Path, tmp_path: Path) -> Path:
    """The tiny data set with three images a tar file."""
    splits = {name: open_split(tiny_root, name) for name in ("train", "val")}
    size = min(file.stat().st_size for file in (tiny_root / "train").iterdir())
    (out := tmp_path / "shards").mkdir()
    write_shards(splits, out, shard_bytes=2 * size)
    return out


@pytest.fixture
def server(shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Requests]:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with serve(shards) as requests:
        yield requests


def batches(root: Path | str, **values: object) -> list[Batch]:
    config = DataConfig(str(root), image_size=64, batch_size=2, augment="strong", mixup=0.5, **values)  # type: ignore[arg-type]
    loader = CocoDataModule(config, seed=3).train_dataloader()
    loader.batch_sampler.sampler.set_epoch(1)  # type: ignore[union-attr]
    return list(loader)


def same(a: list[Batch], b: list[Batch]) -> bool:
    pairs = list(zip(a, b, strict=True))
    return all(
        torch.equal(one.images, two.images)
        and one.image_ids == two.image_ids
        and all(torch.equal(s["boxes"], t["boxes"]) for s, t in zip(one.targets, two.targets, strict=True))
        for one, two in pairs
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_seed_gives_the_same_batches_from_a_folder_from_tar_files_and_from_a_server(
    tiny_root: Path, shards: Path, server: Requests, workers: int
) -> None:
    assert len(list((shards / "train").glob("*.tar"))) > 1
    expected = batches(tiny_root)
    assert same(batches(shards, workers=workers), expected)
    assert same(batches(server.url, workers=workers), expected)
    ranges = [wanted for path, wanted in server.asked if path.endswith(".tar")]
    assert ranges
    assert None not in ranges  # no tar file was read as a whole


def test_any_program_can_unpack_the_shards(shards: Path, tiny_root: Path, tmp_path: Path) -> None:
    for tar in (shards / "train").glob("*.tar"):
        with tarfile.open(tar) as file:
            file.extractall(tmp_path / "unpacked", filter="data")
    unpacked = {path.name: path.read_bytes() for path in (tmp_path / "unpacked").iterdir()}
    assert unpacked == {path.name: path.read_bytes() for path in (tiny_root / "train").iterdir()}


def test_shards_convert_back(tmp_path: Path) -> None:
    convert(coco(tmp_path / "source"), tmp_path / "shards", "shards")
    convert(tmp_path / "shards", tmp_path / "again", "yolo")
    assert all(close(read(tmp_path / "again", split), wanted) for split, wanted in SPLITS.items())


@pytest.mark.parametrize("other", ["folder", "shards"])
def test_copies_are_found_without_reading_them(tiny_root: Path, shards: Path, server: Requests, other: str) -> None:
    records = open_split(server.url, "val").records
    others = open_split({"folder": tiny_root, "shards": shards}[other], "val").records
    server.asked.clear()
    copies = find_copies([records, others])
    assert [[path.name for path in group] for group in copies] == [[path.name] * 2 for path in records.paths]
    assert not server.asked


def test_commands_on_data_take_a_url(server: Requests, tmp_path: Path) -> None:
    run(["data", server.url, "--out", str(tmp_path / "page")])
    assert (tmp_path / "page" / "data.html").exists()
    run(["init", server.url, "--out", str(tmp_path / "init.yaml")])
    assert f"root: {server.url}" in (tmp_path / "init.yaml").read_text()


def test_exports_are_compared_on_images_at_a_url(server: Requests, tiny_root: Path) -> None:
    files = compared_files(images_root(tiny_root, server.url))
    assert [file.name for file in files] == sorted(path.name for path in (tiny_root / "val").iterdir())
    assert all(torch.equal(read_image(file), read_image(tiny_root / "val" / file.name)) for file in files)


def test_the_disk_cache_knows_members_apart(shards: Path, tiny_root: Path) -> None:
    first = batches(shards, cache="disk")
    assert same(batches(shards, cache="disk"), first)
    assert same(first, batches(tiny_root))


def test_a_broken_image_is_named_and_left_out_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    root = coco(tmp_path / "source")
    broken = next(path for path in sorted((root / "train").iterdir()) if path.stem == "a")
    broken.write_bytes(broken.read_bytes()[:50])
    with pytest.raises(DfmsdError, match=r"1 of 3 images are broken, the first: .*a\.\w+: cannot be decoded"):
        convert(root, tmp_path / "out", "shards")
    assert not (tmp_path / "out").exists()
    run(["convert", str(root), "--to", "shards", "--out", str(tmp_path / "out"), "--skip-broken"])
    assert capsys.readouterr().out == "train: 2 images, 1 boxes\nval: 1 images, 2 boxes\n"
    assert f"left out: {broken}" in caplog.text
    assert set(read(tmp_path / "out", "train")) == {"b (1)", "c.d"}


def damage(root: Path, name: str, content: bytes) -> Path:
    file = next((root / "train").glob(name))
    file.write_bytes(content)
    return file


def test_a_tar_file_that_was_not_copied_completely_is_refused_before_training(shards: Path) -> None:
    tar = damage(shards, "00000.tar", (shards / "train" / "00000.tar").read_bytes()[:-512])
    with pytest.raises(DfmsdError, match=rf"{tar} has \d+ bytes, but 00000.tar.json says \d+; copy it again"):
        open_split(shards, "train")


def test_a_damaged_member_is_named(shards: Path) -> None:
    tar = shards / "train" / "00000.tar"
    index = read_index(tar)
    assert index is not None
    name, member = next(iter(index.members.items()))
    content = bytearray(tar.read_bytes())
    content[member.offset : member.offset + member.bytes] = bytes(member.bytes)
    tar.write_bytes(content)
    split = open_split(shards, "train")
    with pytest.raises(DfmsdError, match=rf"00000.tar/{name}: cannot be decoded"):
        split[0]


def test_a_lost_tar_file_is_named(shards: Path) -> None:
    split = open_split(shards, "train")
    (shards / "train" / "00000.tar").unlink()
    with pytest.raises(DfmsdError, match=r"00000.tar is missing; copy it again"):
        split[0]
    with pytest.raises(DfmsdError, match=r"00000.tar has 0 bytes, but 00000.tar.json says \d+; copy it again"):
        open_split(shards, "train")


def test_a_damaged_index_is_named(shards: Path) -> None:
    damage(shards, "00001.tar.json", b"{}")
    with pytest.raises(
        DfmsdError, match=r"00001.tar.json: cannot be read as the index of 00001.tar \(.*bytes.*\); write the shards"
    ):
        open_split(shards, "train")


def test_annotations_of_an_image_that_no_tar_file_has_are_refused(shards: Path) -> None:
    file = shards / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["images"][0]["file_name"] = "00000.tar/lost.png"
    file.write_text(json.dumps(content))
    with pytest.raises(DfmsdError, match=r"1 of the \d+ images in .* are missing: 00000.tar/lost.png"):
        open_split(shards, "train")


def test_a_server_is_asked_again_before_it_is_given_up(server: Requests) -> None:
    split = open_split(server.url, "val")
    server.failures = remote.ATTEMPTS - 1
    image, _ = split[0]
    assert image.shape[0] == 3
    server.failures = remote.ATTEMPTS
    with pytest.raises(DfmsdError, match=r"val/00000.tar: cannot be read after 4 attempts \(503"):
        split[0]


def test_a_server_without_ranges_is_refused(server: Requests) -> None:
    split = open_split(server.url, "val")
    server.ranges = False
    with pytest.raises(DfmsdError, match="sends whole files only; use one that answers range requests"):
        split[0]


def test_only_what_has_changed_is_copied_again(server: Requests, shards: Path) -> None:
    open_split(server.url, "val")
    server.asked.clear()
    open_split(server.url, "val")
    assert server.asked == [("/shards.json", None)]
    file, manifest = shards / "annotations" / "instances_val.json", shards / "shards.json"
    file.write_text(file.read_text().replace('"square"', '"box"'))
    changed = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({"files": {**changed["files"], "annotations/instances_val.json": "0"}}))
    with pytest.raises(DfmsdError, match=r"instances_val.json: is not the file that shards.json lists; upload"):
        open_split(server.url, "val")
    changed["files"]["annotations/instances_val.json"] = remote.digest(file.read_bytes())
    manifest.write_text(json.dumps(changed))
    assert "box" in open_split(server.url, "val").class_names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file; a data set on a server is a folder written by `dfmsd convert --to shards`"),
        ("[]", "is not what `dfmsd convert --to shards` writes"),
        ('{"files": {"../x.json": "0"}}', "lists ../x.json, which lies outside the data set"),
        ('{"files": {"/x.json": "0"}}', "lists /x.json, which lies outside the data set"),
    ],
)
def test_a_server_without_a_data_set_is_refused(
    server: Requests, shards: Path, content: str | None, message: str
) -> None:
    (shards / "shards.json").unlink()
    if content is not None:
        (shards / "shards.json").write_text(content)
    with pytest.raises(DfmsdError, match=f"shards.json.*{message}"):
        open_split(server.url, "val")


def test_an_unknown_kind_of_store_is_named() -> None:
    with pytest.raises(DfmsdError, match=r"nowhere://x/shards.json: Protocol not known: nowhere"):
        open_split("nowhere://x", "val")


def test_a_folder_named_like_a_tar_file_stays_a_folder(tiny_root: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tiny_root, tmp_path / "old.tar")
    assert same(batches(root), batches(tiny_root))
