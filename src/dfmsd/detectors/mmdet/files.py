"""Models of MMDetection: from a config and a checkpoint, and from a saved student."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dfmsd.detectors.config import MMDET, DetectorConfig, check_whole
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
from dfmsd.detectors.weights import StateDict, load_strictly
from dfmsd.errors import DfmsdError, foreign_message

logger = logging.getLogger("dfmsd")
NOT_LOADED = re.compile(r"roi_head\.mask_|data_preprocessor\.")
"""Weights of a checkpoint that have no place in a model for boxes alone."""


class Reference(NamedTuple):
    """``mmdet:CONFIG.py,CHECKPOINT.pth``."""

    text: str
    config: Path
    checkpoint: Path | None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Split at the comma.

        Raises:
            DfmsdError: a file is missing.
        """
        config, _, checkpoint = text.removeprefix(MMDET).partition(",")
        found = cls(text, Path(config), Path(checkpoint) if checkpoint else None)
        for path in (found.config, found.checkpoint):
            if path is not None and not path.is_file():
                raise DfmsdError(f"{text}: there is no file {str(path)!r}; expected {MMDET}CONFIG.py,CHECKPOINT.pth")
        return found


class Checkpoint(NamedTuple):
    """What is used of a checkpoint."""

    state: StateDict
    class_names: tuple[str, ...]
    """Empty where it does not tell."""


def load_mmdet(text: str, *, trained: bool = True) -> MMDetector:
    """Load a detector with its own classes, in eval mode.

    Args:
        text: ``mmdet:CONFIG.py,CHECKPOINT.pth``. The config is Python code, which runs; nothing of the checkpoint does.
        trained: False leaves the weights random where no checkpoint is named.

    Raises:
        DfmsdError: a file is missing, cannot be read safely or does not fit, or the model is of another kind.
    """
    reference = Reference.parse(text)
    if reference.checkpoint is None and trained:
        raise DfmsdError(f"{text} names no weights: write {MMDET}{reference.config},CHECKPOINT.pth")
    config = _read_config(reference)
    given = None if reference.checkpoint is None else read_checkpoint(reference.checkpoint)
    names = (given.class_names if given else ()) or classes_of(config)
    if not names:
        raise DfmsdError(
            f"{text}: neither the checkpoint nor the config names the classes: add metainfo = dict(classes=('...', )), "
            "in the order of the labels, to the config"
        )
    settings = with_classes(read_settings(config, text), len(names))
    model = _build(settings, text)
    if given is not None:
        load_strictly(model, given.state, str(reference.checkpoint))
    return MMDetector(model, settings, names).eval()


def build_mmdet(config: DetectorConfig, names: Sequence[str]) -> MMDetector:
    """Build a student for the classes of a data set, in train mode.

    With ``pretrained: true`` it starts from the checkpoint beside the config; layers whose shape depends on the number
    of classes stay random unless the classes are the same, in the same order. With a path only the backbone starts
    from that file. Without, all is random, and no layer of the backbone is frozen.

    Raises:
        DfmsdError: a key that has no meaning here, or what `load_mmdet` refuses.
    """
    check_whole(config)
    reference = Reference.parse(config.arch)
    if config.pretrained is True and reference.checkpoint is None:
        raise DfmsdError(
            f"pretrained: {config.arch} names no weights; write {MMDET}{reference.config},CHECKPOINT.pth, or give the "
            "path of the backbone's as pretrained"
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
        _copy_weights(model, settings, reference.checkpoint, names)
    detector = MMDetector(model, settings, names)
    detector.config = config
    return detector.train()


def restore_mmdet(config: DetectorConfig, description: dict[str, Any]) -> MMDetector:
    """Build a saved student again, with random weights; nothing but its description is read.

    Raises:
        DfmsdError: the library is missing, or refuses the description.
    """
    text = f"the description of {config.arch}"
    settings = parse(description["mmdet"], text)
    detector = MMDetector(_build(settings, text), settings, description["class_names"])
    detector.config = config
    return detector


def read_checkpoint(path: Path) -> Checkpoint:
    """Read weights, but for those of masks, and the names of the classes, never running pickled code.

    Raises:
        DfmsdError: the file holds more than tensors and plain values, or no weights.
    """
    try:
        read = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file breaks the reader in any way
        code = (
            f"import torch; c = torch.load('{path}', weights_only=False); "
            f"torch.save({{k: c[k] for k in ('state_dict', 'meta')}}, '{path.with_suffix('')}-weights.pth')"
        )
        raise DfmsdError(
            f"{path} cannot be read without running code in it ({_first_sentence(error)}); if you trust it, as one of "
            f'your own trainings, write a file of its weights where mmengine is installed: python -c "{code}"'
        ) from error
    state = read.get("state_dict", read) if isinstance(read, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DfmsdError(f"{path} is no checkpoint of mmdet: expected its weights by name, as state_dict")
    own = ((key.removeprefix("module."), value) for key, value in state.items())
    meta = read.get("meta")
    told = meta.get("dataset_meta") or meta if isinstance(meta, Mapping) else {}
    classes = told.get("classes") or told.get("CLASSES") if isinstance(told, Mapping) else ()
    return Checkpoint({key: value for key, value in own if not NOT_LOADED.match(key)}, class_names(classes))


def import_mmdet(text: str) -> None:
    """Import the library, which is slow, only where it is needed, with operators in place of compiled ones it lacks.

    Raises:
        DfmsdError: it is not there, or its parts do not fit each other; ``text`` says what needs it.
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
        raise DfmsdError(f"{reference.config} is no config of mmdet ({foreign_message(error)})") from error


def _build(settings: Settings, text: str) -> Any:
    """Build the library's model; its own preprocessor is left out."""
    import_mmdet(text)
    given = import_module("mmengine.config").ConfigDict(copy.deepcopy(settings))
    given["data_preprocessor"] = None
    scope = import_module("mmengine.registry").DefaultScope
    try:
        with _quiet(), scope.overwrite_default_scope("mmdet"):
            model = import_module("mmdet.registry").MODELS.build(given)
    except Exception as error:  # any of a hundred classes may refuse what it is told
        raise DfmsdError(f"{text}: mmdet cannot build the model ({foreign_message(error)})") from error
    return import_module("mmengine.model").revert_sync_batchnorm(model)


def _copy_weights(model: Any, settings: Settings, path: Path, names: Sequence[str]) -> None:
    """Give a model of other classes the weights of a trained one, and say which layers stay fresh."""
    given = read_checkpoint(path)
    own = model.state_dict()
    fresh: list[str] = []
    if [name.casefold() for name in given.class_names] != [name.casefold() for name in names]:
        other = _build(with_classes(settings, len(names) + 1), str(path)).state_dict()
        fresh = [key for key, value in own.items() if value.shape != other[key].shape]
        layers = dict.fromkeys(key.rpartition(".")[0] for key in fresh)
        logger.info("%s: fresh layers for %d classes: %s", path, len(names), ", ".join(layers))
    load_strictly(model, {**given.state, **{key: own[key] for key in fresh}}, path)


def _load_backbone(backbone: Any, path: Path) -> None:
    """Load a backbone from the file of a classifier, whose other layers are left out, or of a detector."""
    if not path.is_file():
        raise DfmsdError(f"pretrained: weights file {path} does not exist: check the path")
    state = read_checkpoint(path).state
    inner = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    wanted = backbone.state_dict()
    load_strictly(backbone, {key: value for key, value in (inner or state).items() if key in wanted}, path)


def _first_sentence(error: Exception) -> str:
    """Give what torch says first: what follows is its own advice, to read the file without care."""
    return re.split(r"[.:]\s", foreign_message(error), maxsplit=1)[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what the library tells of every parameter."""
    log = import_module("mmengine.logging").MMLogger.get_current_instance()
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
