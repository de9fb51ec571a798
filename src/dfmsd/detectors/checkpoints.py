"""A detector alone on disk: ``student.safetensors`` (its library's state dict) and ``student.json`` (the rest)."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import save_file
from torchvision.models.detection import KeypointRCNN

from dfmsd.detectors.base import UNUSED_CLASSES, Detector
from dfmsd.detectors.build.builders import build_model
from dfmsd.detectors.config import HUGGING_FACE, MMDET, PYTHON, DetectorConfig, torchvision_archs
from dfmsd.detectors.headless import TIMM, backbone_class, load_timm, load_transformers_backbone
from dfmsd.detectors.hooks import unwrap
from dfmsd.detectors.huggingface.files import load_transformers, read_config, restore_transformers
from dfmsd.detectors.mmdet.files import load_mmdet, restore_mmdet
from dfmsd.detectors.torchvision.wrap import TorchvisionDetector, keypoints_refused, wrap_torchvision
from dfmsd.detectors.weights import download_weights, load_strictly, read_state_dict
from dfmsd.errors import DfmsdError, foreign_message
from dfmsd.runfolder import RunFolder
from dfmsd.utils.files import check_path, write_atomically, write_json

FORMAT_VERSION = 1


def save_detector(detector: Detector, path: str | Path) -> Path:
    """Write weights and description side by side, each atomically.

    Args:
        detector: one built by :func:`~dfmsd.detectors.build_detector` or loaded from its files; or a `ModuleDetector`,
            whose files `load_detector` refuses: its weights go back into the module by ``module.load_state_dict``.
        path: a folder, which gets ``student.safetensors`` and ``student.json``; or a file ``<stem>.safetensors``,
            which gets ``<stem>.json`` beside it.

    Returns:
        The weights file.

    Raises:
        DfmsdError: if the detector was not built from a configuration.
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
    write_atomically(weights, lambda file: save_file(state, file))
    write_json(weights.with_suffix(".json"), _describe(detector, detector.config))
    return weights


def load_detector(reference: str | Path, *, trained: bool = True) -> Detector:
    """Load a detector, in eval mode, on the CPU.

    Args:
        reference: a run folder, a student file (``.safetensors`` or its ``.json``), the name of torchvision weights
            such as ``FCOS_ResNet50_FPN_Weights.COCO_V1``, ``hf:`` and the folder or hub id of a detector of Hugging
            Face transformers, or ``mmdet:`` and config and checkpoint of one of MMDetection, a comma between; as a
            teacher without a detection head ``hf:`` and a vision backbone, or ``timm:<model>`` and
            ``timm:<model>?weights=<file>``.
        trained: False builds the model of torchvision, timm or transformers weights without them, so that none are
            downloaded; a file of dfmsd is read all the same.

    Raises:
        DfmsdError: if there is no such detector, or its file does not fit.
    """
    path, text = Path(reference), str(reference)
    if text.startswith(HUGGING_FACE):
        config = read_config(text)
        load = load_transformers if backbone_class(config) is None else load_transformers_backbone
        return load(text, config, trained=trained)
    if text.startswith(MMDET):
        return load_mmdet(text, trained=trained)
    if text.startswith(TIMM):
        return load_timm(text, trained=trained)
    check_path("model or teacher", text)
    if path.is_dir():
        return _load_folder(RunFolder(path))
    if path.is_file():
        return _load_files(path).eval()
    if re.fullmatch(r"\w+_Weights\.\w+", text):
        return _load_torchvision(text, trained).eval()
    prefix = re.match(r"(\w+):", text)
    if prefix:
        raise DfmsdError(
            f"unknown prefix {prefix[1] + ':'!r} in {text!r}: expected a path, a torchvision weight name, or"
            f" {HUGGING_FACE}, {MMDET} or {TIMM} and a model"
        )
    raise DfmsdError(
        f"no detector at {text!r}: looked for a run folder, a student file and the name of torchvision weights"
        " such as FCOS_ResNet50_FPN_Weights.COCO_V1; a model of Hugging Face transformers is hf:<folder or id>, one of"
        " MMDetection mmdet:<config>,<checkpoint>, a backbone of timm timm:<name>"
    )


def _describe(detector: Detector, config: DetectorConfig) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "detector": asdict(config),
        "class_names": list(detector.class_names),
        **detector.description(),
        "image_size": detector.image_size,
        "levels": [level._asdict() for level in detector.levels],
    }


def _load_folder(folder: RunFolder) -> Detector:
    if not folder.weights_file.is_file():
        raise DfmsdError(f"folder {folder} holds no {folder.weights_file.name}: give the folder of a finished run")
    detector = _load_files(folder.weights_file).eval()
    detector.image_size = detector.image_size or folder.image_size()  # older descriptions do not state it
    return detector


def _load_files(path: Path) -> Detector:
    if path.suffix not in (".safetensors", ".json"):
        raise DfmsdError(f"{path} is not a checkpoint of dfmsd: expected <name>.safetensors with <name>.json beside it")
    weights, described = path.with_suffix(".safetensors"), path.with_suffix(".json")
    description = _read_description(described)
    try:
        config = DetectorConfig(**description["detector"])
        if config.arch.startswith(PYTHON):
            raise DfmsdError(
                f"{weights} holds the weights of a module that only its own program can build,"
                f" {config.arch.removeprefix(PYTHON)}: load them there, by"
                f" module.load_state_dict(safetensors.torch.load_file({str(weights)!r})), and wrap it by ModuleDetector"
            )
        detector = _restore(config, description)
        levels = [tuple(level.values()) for level in description["levels"]]
    except DfmsdError:
        raise
    except Exception as error:  # a foreign description breaks what is built from it in any way
        raise DfmsdError(
            f"{described} does not describe a detector of dfmsd ({type(error).__name__}: {foreign_message(error)}):"
            " give the file that was written beside the weights"
        ) from error
    load_strictly(detector.model, read_state_dict(weights), weights)
    detector.image_size = description.get("image_size")
    if levels != [tuple(level) for level in detector.levels]:
        raise DfmsdError(
            f"{described} tells of levels {levels}, but this version of its library builds {detector.levels}"
        )
    return detector


def _restore(config: DetectorConfig, description: dict[str, Any]) -> Detector:
    if config.arch.startswith(HUGGING_FACE):
        return restore_transformers(config, description)
    if config.arch.startswith(MMDET):
        return restore_mmdet(config, description)
    return _restore_torchvision(config, description)


def _restore_torchvision(config: DetectorConfig, description: dict[str, Any]) -> TorchvisionDetector:
    class_names = _names(description["class_names"])
    # The file holds the backbone too: no ImageNet weights are fetched to be overwritten.
    model: Any = build_model(replace(config, pretrained=False), len(class_names))
    model.transform.image_mean = _pixel_values(description["image_mean"], -math.inf)
    model.transform.image_std = _pixel_values(description["image_std"], 0.0)
    detector = wrap_torchvision(model, class_names)
    detector.config = config
    return detector


def _names(names: Any) -> list[str]:
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise TypeError(f"class_names: {names!r} is no list of names")
    if len(set(names)) < len(names):
        raise ValueError("class_names: a name is there twice")
    return names


def _pixel_values(values: Any, above: float) -> list[float]:
    """Give mean or deviation of the three channels."""
    if not isinstance(values, list) or len(values) != 3:
        raise TypeError(f"image_mean, image_std: {values!r} is no list of three numbers")
    if not all(above < value < math.inf for value in values):
        raise ValueError(f"image_mean, image_std: {values!r} is out of range")
    return [float(value) for value in values]


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DfmsdError(f"{path} is missing: it belongs beside the weights, copy both files") from error
    except (ValueError, RecursionError) as error:
        raise DfmsdError(f"{path} is not a checkpoint's description: it is no JSON ({error})") from error
    version = description.get("format_version") if isinstance(description, dict) else None
    if version != FORMAT_VERSION:
        raise DfmsdError(f"{path} has format_version {version}, this dfmsd reads {FORMAT_VERSION}: update dfmsd")
    return dict(description)


def _load_torchvision(name: str, trained: bool) -> TorchvisionDetector:
    names = {
        f"{enum.__name__}.{member}": (builder, weights)
        for builder in torchvision_archs()
        for enum in [torchvision.models.get_model_weights(builder)]
        for member, weights in enum.__members__.items()
    }
    if name.startswith(KeypointRCNN.__name__):
        raise keypoints_refused(name)
    if name not in names:
        raise DfmsdError(f"unknown torchvision detector weights {name!r}: expected one of {', '.join(names)}")
    builder, weights = names[name]
    categories = weights.meta["categories"]
    label_ids = [label for label, category in enumerate(categories) if category not in UNUSED_CLASSES]
    if trained:
        # torchvision's builder unpickles the cached file without restrictions, so let it be read safely first. The
        # builder is needed: it freezes the batch normalisation and sets its epsilon as the weights were trained with.
        download_weights(weights)
        model = torchvision.models.get_model(builder, weights=weights)
    else:
        model = torchvision.models.get_model(builder, weights=None, weights_backbone=None, num_classes=len(categories))
    return wrap_torchvision(model, [categories[label] for label in label_ids], label_ids)
