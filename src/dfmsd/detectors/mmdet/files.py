"""Loading and building models of MMDetection, and restoring saved students."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dfmsd.detectors.classnames import Names
from dfmsd.detectors.config import DetectorConfig
from dfmsd.detectors.frameworks import MMDET
from dfmsd.detectors.mmdet import mmcv_ops
from dfmsd.detectors.mmdet.detector import MMDetector
from dfmsd.detectors.mmdet.settings import (
    Settings,
    class_names,
    classes_of,
    parse,
    read_settings,
    with_classes,
    with_trainable_backbone,
)
from dfmsd.detectors.statedict import StateDict, load_strictly
from dfmsd.errors import DfmsdError, foreign_message
from dfmsd.utils.console import quieted

logger = logging.getLogger("dfmsd")
NOT_LOADED = re.compile(r"roi_head\.mask_|data_preprocessor\.")
"""Weights of a checkpoint that a model without masks does not have."""


class Reference(NamedTuple):
    """``mmdet:CONFIG.py,CHECKPOINT.pth``."""

    text: str
    config: Path
    checkpoint: Path | None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Split a reference at the comma.

        Raises:
            DfmsdError: A file is missing.
        """
        config, _, checkpoint = text.removeprefix(MMDET).partition(",")
        reference = cls(text, Path(config), Path(checkpoint) if checkpoint else None)
        for path in (reference.config, reference.checkpoint):
            if path is not None and not path.is_file():
                raise DfmsdError(f"{text}: there is no file {str(path)!r}; expected {MMDET}CONFIG.py,CHECKPOINT.pth")
        return reference


class Checkpoint(NamedTuple):
    """The contents of a checkpoint that are used."""

    state: StateDict
    class_names: tuple[str, ...]
    """Empty if the file does not state them."""


def load_mmdet(text: str, *, trained: bool = True) -> MMDetector:
    """Load a detector with its own classes, in eval mode.

    Args:
        text: ``mmdet:CONFIG.py,CHECKPOINT.pth``. The config is Python code that is run; no code in the checkpoint is.
        trained: False leaves the weights random if no checkpoint is named.

    Raises:
        DfmsdError: A file is missing, cannot be read safely or does not fit, or the model is not supported.
    """
    reference = Reference.parse(text)
    if reference.checkpoint is None and trained:
        raise DfmsdError(f"{text} names no weights: write {MMDET}{reference.config},CHECKPOINT.pth")
    config = _read_config(reference)
    checkpoint = None if reference.checkpoint is None else read_checkpoint(reference.checkpoint)
    names = (checkpoint.class_names if checkpoint else ()) or classes_of(config)
    if not names:
        raise DfmsdError(
            f"{text}: neither the checkpoint nor the config names the classes: add metainfo = dict(classes=('...', )), "
            "in the order of the labels, to the config"
        )
    settings = with_classes(read_settings(config, text), len(names))
    model = _build(settings, text)
    if checkpoint is not None:
        load_strictly(model, checkpoint.state, str(reference.checkpoint))
    return MMDetector(model, settings, names).eval()


def build_mmdet(config: DetectorConfig, names: Sequence[str], renamed: Names | None = None) -> MMDetector:
    """Build a student for the classes of a data set, in train mode.

    With ``pretrained: true`` it starts from the reference's checkpoint; layers whose shape depends on the number of
    classes stay random unless the classes are the same, in the same order. With a path, only the backbone starts from
    that file. Otherwise all layers are random, and none of the backbone is frozen.

    Raises:
        DfmsdError: ``pretrained`` is true without a checkpoint, or what `load_mmdet` refuses.
    """
    reference = Reference.parse(config.arch)
    if config.pretrained is True and reference.checkpoint is None:
        raise DfmsdError(
            f"pretrained: {config.arch} names no weights; write {MMDET}{reference.config},CHECKPOINT.pth, or set "
            "pretrained to the path of the backbone's weights"
        )
    settings = with_classes(read_settings(_read_config(reference), config.arch), len(names))
    if config.pretrained is False:
        settings = with_trainable_backbone(settings)
    model = _build(settings, config.arch)
    with _quiet():
        model.init_weights()
    if isinstance(config.pretrained, str):
        _load_backbone(model.backbone, Path(config.pretrained))
    elif config.pretrained and reference.checkpoint is not None:
        _copy_weights(model, settings, reference.checkpoint, names, renamed or {})
    detector = MMDetector(model, settings, names)
    detector.config = config
    return detector.train()


def restore_mmdet(config: DetectorConfig, description: dict[str, Any]) -> MMDetector:
    """Rebuild a saved student, with random weights, from its description alone.

    Raises:
        DfmsdError: The library is missing, or refuses the description.
    """
    text = f"the description of {config.arch}"
    settings = parse(description["mmdet"], text)
    detector = MMDetector(_build(settings, text), settings, description["class_names"])
    detector.config = config
    return detector


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the weights, except those for masks, and the class names, without running pickled code.

    Raises:
        DfmsdError: The file contains more than tensors and plain values, or no weights.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises any kind of exception
        code = (
            f"import torch; c = torch.load('{path}', weights_only=False); "
            f"torch.save({{k: c[k] for k in ('state_dict', 'meta')}}, '{path.with_suffix('')}-weights.pth')"
        )
        raise DfmsdError(
            f"{path} cannot be read without running code in it ({_first_sentence(error)}); if you trust it, for "
            f'example because you trained it, extract its weights where mmengine is installed: python -c "{code}"'
        ) from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DfmsdError(f"{path} is not a checkpoint of mmdet: expected its weights by name, as state_dict")
    weights = ((key.removeprefix("module."), value) for key, value in state.items())
    meta = content.get("meta")
    dataset = meta.get("dataset_meta") or meta if isinstance(meta, Mapping) else {}
    classes = dataset.get("classes") or dataset.get("CLASSES") if isinstance(dataset, Mapping) else ()
    return Checkpoint({key: value for key, value in weights if not NOT_LOADED.match(key)}, class_names(classes))


def import_mmdet(text: str) -> None:
    """Import the library, which is slow, only when it is needed, with substitutes for missing compiled operators.

    Args:
        text: What needs the library, for messages.

    Raises:
        DfmsdError: It is missing, or its packages do not fit each other.
    """
    try:
        import_module("mmcv")
        mmcv_ops.install()
        import_module("mmdet.models")
    except (ImportError, AssertionError) as error:  # mmdet asserts the versions of the other two
        raise DfmsdError(f"{text} needs mmdet ({foreign_message(error)}): pip install 'dfmsd[mmdet]'") from error


def _read_config(reference: Reference) -> Any:
    import_mmdet(reference.text)
    try:
        with _quiet():
            return import_module("mmengine.config").Config.fromfile(reference.config)
    except Exception as error:  # a config is a program
        raise DfmsdError(f"{reference.config} is not a config of mmdet ({foreign_message(error)})") from error


def _build(settings: Settings, text: str) -> Any:
    """Build the library's model, without its preprocessor."""
    import_mmdet(text)
    model_config = import_module("mmengine.config").ConfigDict(copy.deepcopy(settings))
    model_config["data_preprocessor"] = None
    scope = import_module("mmengine.registry").DefaultScope
    try:
        with _quiet(), scope.overwrite_default_scope("mmdet"):
            model = import_module("mmdet.registry").MODELS.build(model_config)
    except Exception as error:  # any of a hundred classes may refuse its settings
        raise DfmsdError(f"{text}: mmdet cannot build the model ({foreign_message(error)})") from error
    return import_module("mmengine.model").revert_sync_batchnorm(model)


def _copy_weights(model: Any, settings: Settings, path: Path, names: Sequence[str], renamed: Names) -> None:
    """Copy a trained model's weights to one with other classes, and log which layers are reset."""
    checkpoint = read_checkpoint(path)
    initial = model.state_dict()
    reset: list[str] = []
    own = [renamed.get(name, name).casefold() for name in checkpoint.class_names]
    if own != [name.casefold() for name in names]:
        # layers whose shape depends on the number of classes
        other = _build(with_classes(settings, len(names) + 1), str(path)).state_dict()
        reset = [key for key, value in initial.items() if value.shape != other[key].shape]
        layers = dict.fromkeys(key.rpartition(".")[0] for key in reset)
        logger.info("%s: layers reset for %d classes: %s", path, len(names), ", ".join(layers))
    load_strictly(model, {**checkpoint.state, **{key: initial[key] for key in reset}}, path)


def _load_backbone(backbone: Any, path: Path) -> None:
    """Load a backbone from the file of a detector, or of a classifier, whose head is left out."""
    if not path.is_file():
        raise DfmsdError(f"pretrained: weights file {path} does not exist: check the path")
    state = read_checkpoint(path).state
    inner = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    expected = backbone.state_dict()
    load_strictly(backbone, {key: value for key, value in (inner or state).items() if key in expected}, path)


def _first_sentence(error: Exception) -> str:
    """Return the first sentence of PyTorch's message; the rest advises to load the file unsafely."""
    return re.split(r"[.:]\s", foreign_message(error), maxsplit=1)[0]


def _quiet() -> AbstractContextManager[None]:
    """Suppress the library's log line for every parameter."""
    return quieted(import_module("mmengine.logging").MMLogger.get_current_instance())
