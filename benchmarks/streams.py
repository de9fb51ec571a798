"""Reading images in random order from a folder, from tar files, and by two libraries for streaming.

    pip install --no-deps --target build/peers -r benchmarks/peers.txt
    python benchmarks/streams.py

The encoded images are read in the order that a seed gives, as training reads them, without being decoded. WebDataset
can only read in the order of its tar files, with a buffer that shuffles, so its row is what giving up that order would
gain. A URL of this machine shows what a request costs without the network's time.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from _coco import write_coco
from _measure import interleaved_medians, parse_arguments, print_rows, write_results
from _peers import PEERS

from dfmsd.data import open_split
from dfmsd.data.shards import read_bytes
from dfmsd.data.shardwriter import write_shards
from dfmsd.utils.cachedir import folder_bytes

IMAGES = 400
SHARD_BYTES = 2**22


def in_order(root: str | Path, order: list[int]) -> Callable[[], object]:
    """Return a function that reads the images of a data set in this order."""
    records = open_split(root, "train").records
    return lambda: [read_bytes(records[index].path) for index in order]


def by_litdata(root: Path, folder: Path, order: list[int]) -> Callable[[], object]:
    """Return a function that reads the images in this order from litdata's chunks, keeping a quarter of them."""
    import litdata

    files = [str(record.path) for record in open_split(root, "train").records]
    chunks, cache = folder / "chunks", folder / "litdata"
    litdata.optimize(fn=_content, inputs=files, output_dir=str(chunks), chunk_bytes=SHARD_BYTES, num_workers=1)
    dataset = litdata.StreamingDataset(f"local:{chunks}", str(cache), max_cache_size=folder_bytes(chunks) // 4)
    return lambda: [bytes(dataset[index]) for index in order]


def by_webdataset(shards: Path) -> Callable[[], object]:
    """Return a function that reads the images in WebDataset's order."""
    import webdataset

    tars = sorted(map(str, (shards / "train").glob("*.tar")))
    return lambda: list(webdataset.WebDataset(tars, shardshuffle=len(tars), seed=0).shuffle(100))


def _content(file: str) -> bytes:
    return Path(file).read_bytes()


def main() -> None:
    """Measure, print a table and write JSON."""
    options = parse_arguments(__doc__, "streams", repeats=9)
    sys.path.append(str(PEERS))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["DFMSD_CACHE"] = str(folder / "cache")
        root, shards = write_coco(folder / "data", train=IMAGES, val=8), folder / "shards"
        shards.mkdir()
        write_shards({split: open_split(root, split) for split in ("train", "val")}, shards, SHARD_BYTES)
        order = np.random.default_rng(0).permutation(IMAGES).tolist()
        calls = {
            "folder": in_order(root, order),
            "tar files": in_order(shards, order),
            "tar files at a URL": in_order(shards.as_uri(), order),
        }
        if find_spec("litdata"):
            calls["litdata"] = by_litdata(root, folder, order)
        if find_spec("webdataset"):
            calls["WebDataset"] = by_webdataset(shards)
        medians = interleaved_medians(calls, options.repeats)
        kept = {"tar files at a URL": folder / "cache" / "shards", "litdata": folder / "litdata"}
        rows: list[dict[str, Any]] = [
            {
                "source": source,
                "images_per_s": 1e3 * IMAGES / median.wall,
                "relative_to_folder": medians["folder"].wall / median.wall,
                "kept_on_disk": folder_bytes(kept[source]) / folder_bytes(shards) if source in kept else None,
            }
            for source, median in medians.items()
        ]
    print_rows(f"{IMAGES} images of 100 kB, one process", rows)
    write_results(options.out, {"repeats": options.repeats, "images": IMAGES, "rows": rows})


if __name__ == "__main__":
    main()
