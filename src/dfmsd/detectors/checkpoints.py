"""Detectors by reference, and as files: ``student.safetensors`` (a state dict) and ``student.json`` (the rest)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dfmsd.data.config import check_image_size
from dfmsd.detectors.base import Detector
from dfmsd.detectors.config import PYTHON, DetectorConfig, is_weights_name
from dfmsd.detectors.description import describe, described_config, find_files, read_description
from dfmsd.detectors.frameworks import FRAMEWORKS, TORCHVISION
from dfmsd.detectors.hooks import unwrap
from dfmsd.detectors.registry import build_model, find_adapter
from dfmsd.detectors.statedict import StateDict, load_strictly, read_state_dict
from dfmsd.detectors.timm_backbone import TIMM, load_timm
from dfmsd.detectors.torchvision.files import USAGE, load_torchvision_file
from dfmsd.detectors.torchvision.pretrained import known_weights, load_torchvision
from dfmsd.detectors.torchvision.wrap import TorchvisionDetector, wrap_torchvision
from dfmsd.errors import DfmsdError, foreign_message, suggest
from dfmsd.runfolder import RunFolder
from dfmsd.utils.coerce import expand_home
from dfmsd.utils.files import check_path, write_json, write_tensors

STUDENT, AVERAGE = "task.trainable.student.model.", "model."
"""Start of the student's keys in the checkpoints of a run, and of those in the moving average there."""


def save_detector(detector: Detector, path: str | Path) -> Path:
    """Write weights and description side by side, each atomically.

    Args:
        detector: A detector built by :func:`~dfmsd.detectors.build_detector` or loaded from its files; or a
            `ModuleDetector`, whose weights go back into the module with ``module.load_state_dict``, since
            `load_detector` refuses its files.
        path: A folder, which gets ``student.safetensors`` and ``student.json``; or a file ``<stem>.safetensors``,
            which gets ``<stem>.json`` next to it.

    Returns:
        The weights file.

    Raises:
        DfmsdError: The detector was not built from a configuration.
    """
    if detector.config is None:
        raise DfmsdError(
            f"this {type(detector).__name__} was not built from a configuration and cannot be saved alone:"
            " use build_detector, or refer to it by the name that it was loaded from"
        )
    weights = Path(path) if Path(path).suffix == ".safetensors" else RunFolder(Path(path)).weights_file
    weights.parent.mkdir(parents=True, exist_ok=True)
    # copies, since layers that share a tensor would be one in the file
    state = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in unwrap(detector.model).state_dict().items()
    }
    write_tensors(weights, state)
    write_json(weights.with_suffix(".json"), describe(detector, detector.config))
    return weights


def load_detector(reference: str | Path, *, trained: bool = True) -> Detector:
    """Load a detector, in eval mode, on the CPU.

    Args:
        reference: A run folder, a student file (``.safetensors`` or its ``.json``), ``best.ckpt`` or ``last.ckpt`` in
            a run folder for the student of that epoch (its average with ``deliver: ema``), the name of torchvision
            weights such as ``FCOS_ResNet50_FPN_Weights.COCO_V1``, ``torchvision:`` and builder, weights and class names
            of a detector of your own, ``hf:`` and the folder or hub id of a detector of Hugging Face transformers,
            ``mmdet:`` and config and checkpoint of a detector of MMDetection, separated by a comma, or ``ultralytics:``
            and a checkpoint of its YOLO; as a teacher without a detection head, ``hf:`` and a vision backbone,
            ``timm:<model>`` or ``timm:<model>?weights=<file>``.
        trained: False builds models of torchvision, timm or transformers with random weights, so that none are
            downloaded; dfmsd's own files are read in any case.

    Raises:
        DfmsdError: The detector does not exist, or its file does not fit.
    """
    text = str(expand_home(reference))
    path = Path(text)
    adapter = find_adapter(text)
    if adapter is not None:
        return adapter.load(text, trained=trained)
    if text.startswith(TIMM):
        return load_timm(text, trained=trained)
    if text.startswith(TORCHVISION):
        return load_torchvision_file(text, trained=trained)
    check_path("model or teacher", text)
    if path.exists():
        return _load_files(path).eval()
    if is_weights_name(text):
        return load_torchvision(text, trained=trained)
    raise unknown_reference(text)


def unknown_reference(text: str) -> DfmsdError:
    """Return the error for a reference to no detector."""
    if text.startswith(PYTHON):
        return DfmsdError(
            f"{text!r} stands for a detector passed from Python, which no file holds: pass it again there, with"
            " resume=True to continue a run"
        )
    prefix = re.match(r"(\w+):", text)
    if prefix:
        prefixes = f"{', '.join(FRAMEWORKS)}, {TORCHVISION} or {TIMM}"
        expected = f"expected a path, a torchvision weight name, or {prefixes} and a model"
        hint = suggest(prefix[0], [*FRAMEWORKS, TORCHVISION, TIMM], expected)
        return DfmsdError(f"unknown prefix {prefix[0]!r} in {text!r}: {hint}")
    expected = (
        "expected a run folder, a student file, torchvision weights such as"
        f" FCOS_ResNet50_FPN_Weights.COCO_V1, {USAGE} for weights of your own,"
        " hf:<folder or id> for a model of Hugging Face transformers, mmdet:<config>,<checkpoint> for one of"
        " MMDetection, ultralytics:<best.pt> for a YOLO of Ultralytics, or timm:<name> for a backbone"
    )
    return DfmsdError(f"no detector at {text!r}: {suggest(text, known_weights(), expected)}")


def _load_files(path: Path) -> Detector:
    files = find_files(path)
    weights, description_file = files.weights, files.description
    description = read_description(description_file)
    config = described_config(description, description_file)
    if config.arch.startswith(PYTHON):
        raise DfmsdError(
            f"{weights} holds the weights of a module that only its own program can build,"
            f" {config.arch.removeprefix(PYTHON)}: load them there with"
            f" module.load_state_dict(safetensors.torch.load_file({str(weights)!r})), and wrap it in ModuleDetector"
        )
    try:
        detector = restore_detector(config, description)
        image_size = description.get("image_size")
        if image_size is not None:
            check_image_size(image_size, f"{description_file}: image_size")
        # not the sizes, which older files lack and on which no weight depends
        levels = [(level["name"], level["channels"], level["stride"]) for level in description["levels"]]
    except DfmsdError:
        raise
    except Exception as error:  # a damaged description raises any kind of exception
        raise DfmsdError(
            f"{description_file} does not describe a detector of dfmsd ({type(error).__name__}:"
            f" {foreign_message(error)}): use the file that was written next to the weights"
        ) from error
    state = _read_student(weights) if files.of_training else read_state_dict(weights)
    load_strictly(detector.model, state, weights)
    detector.image_size = image_size
    run = RunFolder(path if path.is_dir() else path.parent)
    if image_size is None and description_file == run.description_file:
        detector.image_size = run.image_size()  # older descriptions do not state it
    built = [(level.name, level.channels, level.stride) for level in detector.levels]
    if levels != built:
        raise DfmsdError(f"{description_file} lists levels {levels}, but this version of its library builds {built}")
    return detector


def _read_student(checkpoint: Path) -> StateDict:
    """Return the student's weights in a checkpoint of a run, those that were measured: the average of ``ema``."""
    state, prefix = read_state_dict(checkpoint), STUDENT
    if RunFolder(checkpoint.parent).read_config().get("deliver") == "ema":
        content = torch.load(checkpoint, weights_only=True, mmap=True, map_location="cpu")
        average = content.get("callbacks", {}).get("WeightAverage", {})
        state, prefix = average.get("tensors", {}), AVERAGE
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def restore_detector(config: DetectorConfig, description: Mapping[str, Any]) -> Detector:
    """Rebuild a detector, with random weights, in train mode.

    Args:
        config: Its configuration.
        description: Result of `describe`, perhaps with other class names.

    Raises:
        DfmsdError: The library refuses the description; any other exception means that it is damaged.
    """
    adapter = find_adapter(config.arch)
    if adapter is None:
        return _restore_torchvision(config, description)
    return adapter.restore(config, dict(description)).train()


def _restore_torchvision(config: DetectorConfig, description: Mapping[str, Any]) -> TorchvisionDetector:
    class_names = _check_names(description["class_names"])
    # the file holds the backbone too, so its ImageNet weights are not downloaded
    model: Any = build_model(replace(config, pretrained=False), len(class_names))
    model.transform.image_mean = _check_channels(description["image_mean"], -math.inf)
    model.transform.image_std = _check_channels(description["image_std"], 0.0)
    detector = wrap_torchvision(model, class_names)
    detector.config = config
    return detector


def _check_names(names: Any) -> list[str]:
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise TypeError(f"class_names: {names!r} is not a list of names")
    if len(set(names)) < len(names):
        raise ValueError("class_names: a name occurs twice")
    return names


def _check_channels(values: Any, above: float) -> list[float]:
    """Check the mean or standard deviation of the three channels."""
    if not isinstance(values, list) or len(values) != 3:
        raise TypeError(f"image_mean, image_std: {values!r} is not a list of three numbers")
    if not all(above < value < math.inf for value in values):
        raise ValueError(f"image_mean, image_std: {values!r} is out of range")
    return [float(value) for value in values]
