"""Files of a saved detector: ``student.safetensors`` or a checkpoint, and the description next to it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from dfmsd.detectors.base import Detector
from dfmsd.detectors.config import DetectorConfig
from dfmsd.detectors.frameworks import HUGGING_FACE, TORCHVISION, ULTRALYTICS
from dfmsd.errors import DfmsdError
from dfmsd.runfolder import WEIGHTS_NAME, RunFolder

FORMAT_VERSION = 1
FOREIGN = (".pth", ".ckpt", ".bin", ".tar")
"""Suffixes of other programs' checkpoints."""
SHOWN = 8
"""Detectors that a message about a folder lists."""


class DetectorFiles(NamedTuple):
    """Where the two files of a detector are."""

    weights: Path
    description: Path
    of_training: bool
    """Whether the weights are in a checkpoint of a run, among those of the losses."""


def find_files(path: Path) -> DetectorFiles:
    """Return the files that a path stands for.

    Args:
        path: Existing run folder, student file (``.safetensors`` or its ``.json``), or checkpoint in a run folder.

    Raises:
        DfmsdError: The folder has no student, or the file is of another kind.
    """
    if path.is_dir():
        weights = RunFolder(path).weights_file
        if not weights.is_file():
            raise DfmsdError(f"folder {path} has no {weights.name}: pass the folder of a finished run{_held(path)}")
        path = weights
    run = RunFolder(path.parent)
    of_training = path.suffix == ".ckpt" and run.exists
    if not of_training and path.suffix not in (".safetensors", ".json"):
        of_ultralytics = f"for a model of Ultralytics, write {ULTRALYTICS}{path}"
        of_torchvision = f"for one of torchvision, write {TORCHVISION}BUILDER,{path},CLASSES.txt"
        hints = {".pt": f"; {of_ultralytics}; {of_torchvision}"} | dict.fromkeys(FOREIGN, f"; {of_torchvision}")
        raise DfmsdError(
            f"{path} is not a checkpoint of dfmsd: expected <name>.safetensors with <name>.json next to it, a run"
            f" folder, or best.ckpt or last.ckpt in one{hints.get(path.suffix, '')}"
        )
    if of_training:
        return DetectorFiles(path, run.description_file, True)
    return DetectorFiles(path.with_suffix(".safetensors"), path.with_suffix(".json"), False)


def _held(folder: Path) -> str:
    """Say which detectors a folder holds instead of its own."""
    best = folder / "weights" / "best.pt"
    if best.is_file():
        return f"; for the model of Ultralytics in it, write {ULTRALYTICS}{best}"
    if (folder / "config.json").is_file():
        return f"; for the model of Hugging Face transformers in it, write {HUGGING_FACE}{folder}"
    runs = [file.parent for file in sorted(folder.glob(f"*/{WEIGHTS_NAME}"))]
    held = [*runs, *sorted(folder.glob("*.safetensors"))][:SHOWN]
    return f"; it holds {', '.join(map(str, held))}" if held else ""


def describe(detector: Detector, config: DetectorConfig) -> dict[str, Any]:
    """Return what rebuilding a detector needs, as JSON types."""
    return {
        "format_version": FORMAT_VERSION,
        "detector": asdict(config),
        "class_names": list(detector.class_names),
        **detector.description(),
        "image_size": detector.image_size,
        "levels": [level.to_dict() for level in detector.levels],
    }


def read_description(path: Path) -> dict[str, Any]:
    """Read the description that `describe` made.

    Raises:
        DfmsdError: The file is missing, damaged, or of another version.
    """
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DfmsdError(
            f"{path} is missing: it belongs next to the weights, under the same name; copy both files"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DfmsdError(f"{path} is not a checkpoint's description: it is not valid JSON ({error})") from error
    version = description.get("format_version") if isinstance(description, dict) else None
    if version != FORMAT_VERSION:
        raise DfmsdError(f"{path} has format_version {version}, this dfmsd reads {FORMAT_VERSION}: update dfmsd")
    return dict(description)


def described_config(description: dict[str, Any], file: Path) -> DetectorConfig:
    """Return the config in a description.

    Args:
        description: Result of `read_description`.
        file: Its file, for the message.

    Raises:
        DfmsdError: It has none, or one that this version refuses.
    """
    try:
        return DetectorConfig(**description["detector"])
    except (DfmsdError, KeyError, TypeError) as error:
        reason = error if isinstance(error, DfmsdError) else f"{type(error).__name__}: {error}"
        raise DfmsdError(
            f"{file} does not describe a detector of dfmsd ({reason}): use the file that was written next to the"
            " weights"
        ) from error
