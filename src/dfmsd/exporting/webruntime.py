"""The files of onnxruntime-web: the user's, or those of the npm package, which are kept in the cache."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from dfmsd.errors import DfmsdError, one_line
from dfmsd.utils.cachedir import cache_root
from dfmsd.utils.files import new_folder

PACKAGE = "onnxruntime-web@1.30.0"
FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
"""The script and the WebAssembly module that it loads, without those for graphics cards."""
TIMEOUT = 300
"""Seconds for a download of 33 MB."""


def find_runtime(folder: Path | None) -> list[Path]:
    """Return the paths of the files, after downloading them once if there is no folder.

    Args:
        folder: folder with the files, or of the unpacked package, whose ``dist`` has them; None asks npm.

    Raises:
        DfmsdError: a file is missing, or npm is missing or fails.
    """
    if folder is not None:
        places = [place for place in (folder, folder / "dist") if _has_all(place)]
        if not places:
            raise DfmsdError(f"`runtime`: {folder} does not have {' and '.join(FILES)}, which are files of {PACKAGE}")
        return [places[0] / name for name in FILES]
    cached = cache_root() / PACKAGE.replace("@", "-")
    if not _has_all(cached):
        _download(cached)
    return [cached / name for name in FILES]


def _has_all(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


def _download(target: Path) -> None:
    advice = f"or pass a folder with {' and '.join(FILES)} of this package as `runtime`"
    npm = shutil.which("npm")
    if npm is None:
        raise DfmsdError(f"`web` needs npm to download {PACKAGE}, once: install npm, {advice}")
    shutil.rmtree(target, ignore_errors=True)  # a part of the files is of no use
    command = [npm, "pack", PACKAGE, "--fetch-retries", "1", "--loglevel", "error"]
    with tempfile.TemporaryDirectory() as work, new_folder(target, "DFMSD_CACHE") as folder:
        try:
            subprocess.run(command, cwd=work, capture_output=True, text=True, check=True, timeout=TIMEOUT)
            with tarfile.open(next(Path(work).glob("*.tgz"))) as package:
                for name in FILES:
                    (folder / name).write_bytes(package.extractfile(f"package/dist/{name}").read())  # type: ignore[union-attr]
        except (subprocess.SubprocessError, StopIteration, tarfile.TarError, KeyError) as error:
            reason = one_line(getattr(error, "stderr", None) or error)[:200]
            raise DfmsdError(
                f"`web`: npm cannot download {PACKAGE} ({reason}): connect to the internet, {advice}"
            ) from error
