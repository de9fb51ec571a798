"""The page that runs a student: its resizing, its files, and what is refused; tests/test_browser_web.py opens it."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.helpers.exports import tiny

import dfmsd
from dfmsd.detectors import Detector, save_detector
from dfmsd.errors import DfmsdError
from dfmsd.exporting import exporter, web, webruntime
from dfmsd.exporting.standalone import infer
from dfmsd.exporting.webruntime import FILES, find_runtime

SCRIPT = """
import { readFileSync } from "node:fs";
const { resize, round } = await import(process.argv[1]);
const [width, height, side] = process.argv.slice(2).map(Number);
const lengths = [width, height].map((length) => Math.max(1, round((length * side) / Math.max(width, height))));
process.stdout.write(resize({ data: readFileSync(0), width, height }, ...lengths));
"""
"""Resizes pixels of standard input as the page does."""


@pytest.mark.parametrize("size", [(64, 64), (320, 240), (90, 37), (68, 431), (640, 11), (128, 101), (20, 30), (1, 50)])
def test_the_page_resizes_as_the_script_does(size: tuple[int, int]) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no Node.js here")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))
    command = [
        node,
        "--input-type=module",
        "-e",
        SCRIPT,
        "--",
        (web.PAGE / "resize.js").as_uri(),
        *map(str, size),
        "64",
    ]
    done = subprocess.run(command, input=image.convert("RGBA").tobytes(), capture_output=True, check=True)
    rule = {"size": 64, "padding": [0, 0, 0], "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
    pixels, (width, height) = infer.preprocess(image, {"preprocess": rule})
    expected = (pixels[0, :, :height, :width].transpose(1, 2, 0) * 255).round()
    assert np.array_equal(np.frombuffer(done.stdout, np.uint8).reshape(height, width, 3), expected)


def test_names_are_escaped(tmp_path: Path) -> None:
    page = shutil.copy(web.PAGE / "index.html", tmp_path)
    web._fill(Path(page), "<i>student</i>", ["<b>"] + [str(number) for number in range(11)])
    text = Path(page).read_text(encoding="utf-8")
    assert "<h1>&lt;i&gt;student&lt;/i&gt;</h1>" in text
    assert "Finds &lt;b&gt;, 0, 1, 2, 3, 4, 5, 6, 7, 8 and 2 more classes." in text


def test_the_page_names_no_other_place() -> None:
    text = "".join(file.read_text(encoding="utf-8") for file in web.PAGE.iterdir())
    assert set(re.findall(r"https?://[\w.]+", text)) == {"http://www.w3.org"}  # of the icon's namespace


def fake_npm(folder: Path, body: str) -> None:
    file = folder / "npm"
    file.write_text(f"#!{sys.executable}\nimport sys\n{body}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of commands, and a cache beside it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("DFMSD_CACHE", str(tmp_path / "cache"))
    return folder


def test_the_runtime_is_downloaded_once(path: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as package:
        for name in (*FILES, "other.js"):
            (tmp_path / name).write_text(f"content of {name}")
            package.add(tmp_path / name, f"package/dist/{name}")
    lines = ["import shutil", "assert sys.argv[1] == 'pack'", "name = sys.argv[2].replace('@', '-')"]
    fake_npm(path, "\n".join([*lines, f"shutil.copy({str(tmp_path / 'package.tgz')!r}, f'{{name}}.tgz')"]))
    files = find_runtime(None)
    assert [file.read_text() for file in files] == [f"content of {name}" for name in FILES]
    assert {file.name for file in files[0].parent.iterdir()} == set(FILES)
    files[0].unlink()  # as a cache that was cleared in part
    assert find_runtime(None) == files
    assert files[0].is_file()
    (path / "npm").unlink()
    assert find_runtime(None) == files


def test_a_folder_replaces_the_download(path: Path, tmp_path: Path) -> None:
    (tmp_path / "package" / "dist").mkdir(parents=True)
    with pytest.raises(DfmsdError, match=r"`runtime`: .*package does not have ort\.wasm\.bundle\.min\.mjs and"):
        find_runtime(tmp_path / "package")
    for name in FILES:
        (tmp_path / "package" / "dist" / name).touch()
    for folder in (tmp_path / "package", tmp_path / "package" / "dist"):
        assert find_runtime(folder) == [tmp_path / "package" / "dist" / name for name in FILES]
    with pytest.raises(DfmsdError, match=r"`web` needs npm to download onnxruntime-web@.*, once: install npm, or pass"):
        find_runtime(None)


def test_a_failed_download_is_one_line(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_npm(path, "sys.exit('npm error code ENOTFOUND\\nnpm error network')")
    with pytest.raises(
        DfmsdError, match=r"npm cannot download .* \(npm error code ENOTFOUND npm error network\): conn"
    ):
        find_runtime(None)
    fake_npm(path, "import time; time.sleep(60)")
    monkeypatch.setattr(webruntime, "TIMEOUT", 0.5)
    with pytest.raises(DfmsdError, match=r"npm cannot download .* \(.*timed out after 0\.5"):
        find_runtime(None)
    monkeypatch.setattr(webruntime, "TIMEOUT", 60)
    fake_npm(path, "open('x.tgz', 'w').close()")
    with pytest.raises(DfmsdError, match="`web`: npm cannot download"):
        find_runtime(None)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "torch"}, "`web`: the page runs ONNX with suppression inside, not `format` torch; leave it out"),
        ({"nms": "outside"}, "`web`: the page runs ONNX with suppression inside, not `nms` outside; leave it out"),
        ({"int8": True}, "`int8`: not for `web`"),
        ({"out": "x.onnx"}, "`out` names a file, `bundle` and `web` a folder with it; pass one of them"),
        ({"bundle": "x"}, "`out` names a file, `bundle` and `web` a folder with it; pass one of them"),
        ({"web": None, "runtime": "x"}, "`runtime`: only for `web`"),
        ({"runtime": "nowhere"}, "`runtime`: nowhere does not have ort"),
        ({"web": "FULL"}, "`web`: .*full exists and is not an empty folder; name a new one"),
    ],
)
def test_bad_input_is_refused_before_work(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_work(*_: object) -> Detector:
        raise AssertionError

    monkeypatch.setattr(exporter, "load_detector", no_work)
    save_detector(tiny("fcos"), tmp_path / "model")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    values = {"model": tmp_path / "model", "web": tmp_path / "page", **changes}
    if values["web"] == "FULL":
        values["web"] = tmp_path / "full"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DfmsdError, match=message):
        dfmsd.export(**values)
    assert sorted(tmp_path.rglob("*")) == before
