"""Writer of data sets as tar files, for file systems with few files and for object stores."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import msgspec

from dfmsd.data.records import ImageRecord
from dfmsd.data.remote import MANIFEST, Manifest, digest
from dfmsd.data.shards import SUFFIX, Member, ShardIndex, file_stamp, index_file, read_bytes
from dfmsd.data.writers import Counts, Splits, distinct_names, write_annotations

SHARD_BYTES = 2**28
"""Bytes of images after which the next tar file begins."""


def write_shards(splits: Splits, out: Path, shard_bytes: int = SHARD_BYTES) -> Counts:
    """Write ``{split}/00000.tar`` etc. with their indexes, COCO annotations, and ``shards.json``, which lists both.

    The annotations name an image ``00000.tar/x.jpg``, so the data set has the COCO layout. The images keep their order,
    and with it every batch of a seed.

    Args:
        splits: What to write.
        out: An empty folder.
        shard_bytes: Bytes of images after which the next tar file begins.
    """
    counts = {}
    for split, data in splits.items():
        (out / split).mkdir()
        names = []
        for number, shard in enumerate(_divided(data.records, shard_bytes)):
            tar = out / split / f"{number:05}{SUFFIX}"
            names += [f"{tar.name}/{name}" for name, _ in shard]
            _write_tar(tar, shard)
        counts[split] = write_annotations(data, names, out, split)
    files = {path.relative_to(out).as_posix(): digest(path.read_bytes()) for path in sorted(out.glob("*/*.json"))}
    (out / MANIFEST).write_bytes(msgspec.json.encode(Manifest(files)))
    return counts


def _divided(records: Sequence[ImageRecord], limit: int) -> Iterator[list[tuple[str, ImageRecord]]]:
    """Divide images into tar files; a name is taken once in a split."""
    shard: list[tuple[str, ImageRecord]] = []
    size = 0
    for name, record in zip(distinct_names(records), records, strict=True):
        shard.append((name, record))
        size += file_stamp(record.path)[1]
        if size >= limit:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def _write_tar(tar: Path, images: Sequence[tuple[str, ImageRecord]]) -> None:
    """Write a tar file, the same one for the same images, and its index."""
    about = {}
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as file:
        for name, record in images:
            content = read_bytes(record.path)
            about[name] = (record.height, record.width, digest(content))
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, BytesIO(content))
    with tarfile.open(tar) as file:
        members = {info.name: Member(info.offset_data, info.size, *about[info.name]) for info in file}
    index_file(tar).write_bytes(msgspec.json.encode(ShardIndex(tar.stat().st_size, members)))
