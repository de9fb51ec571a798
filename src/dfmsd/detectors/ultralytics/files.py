"""Loading and building Ultralytics' models, and restoring saved students."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from dfmsd.detectors.classnames import Names, with_names
from dfmsd.detectors.config import DetectorConfig
from dfmsd.detectors.frameworks import ULTRALYTICS
from dfmsd.detectors.statedict import load_strictly, read_state_dict
from dfmsd.detectors.transfer import keep_weights
from dfmsd.detectors.ultralytics.checkpoint import Checkpoint, read_checkpoint
from dfmsd.detectors.ultralytics.detector import CLASS_TOWERS, UltralyticsDetector
from dfmsd.errors import DfmsdError, foreign_message
from dfmsd.utils.console import quieted
from dfmsd.utils.extras import import_extra

logger = logging.getLogger("dfmsd")
YAML = (".yaml", ".yml")


class Reference(NamedTuple):
    """``ultralytics:BEST.pt``, ``ultralytics:MODEL.yaml`` or ``ultralytics:MODEL.yaml,WEIGHTS.pt``."""

    text: str
    layout: str
    """A YAML file, or the name of one of the library's own, such as ``yolo11n.yaml``; empty if the weights say it."""
    weights: Path | None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Split a reference at the comma.

        Raises:
            DfmsdError: It has another form, or its weights are missing.
        """
        first, _, second = text.removeprefix(ULTRALYTICS).partition(",")
        layout, weights = (first, second) if first.endswith(YAML) else ("", first)
        if not (layout or weights) or (second and not layout):
            raise DfmsdError(
                f"{text}: expected {ULTRALYTICS}BEST.pt, {ULTRALYTICS}MODEL.yaml or {ULTRALYTICS}MODEL.yaml,WEIGHTS.pt"
            )
        if weights and not Path(weights).is_file():
            raise DfmsdError(f"{text}: there is no file {weights!r}; weights are not downloaded, so pass their path")
        return cls(text, layout, Path(weights) if weights else None)

    def read(self) -> Checkpoint:
        """Read the model's layout, classes and, if it names any, weights.

        Raises:
            DfmsdError: A file cannot be read safely, or is not the library's.
        """
        if not self.layout:
            assert self.weights is not None
            return read_checkpoint(self.weights)
        layout = _read_layout(self)
        names = layout.get("names") or {}
        names = names.values() if isinstance(names, Mapping) else names
        state = read_state_dict(self.weights) if self.weights else {}
        return Checkpoint(state, layout, tuple(map(str, names)), None)


def load_ultralytics(text: str, *, trained: bool = True) -> UltralyticsDetector:
    """Load a detector with its own classes, in eval mode.

    Args:
        text: ``ultralytics:BEST.pt``, or ``ultralytics:MODEL.yaml,WEIGHTS.pt`` with a state dict as weights and the
            class ``names`` in the YAML. No code in a file of weights is executed.
        trained: False leaves the weights random.

    Raises:
        DfmsdError: A file is missing, cannot be read safely or does not fit, or the model is no detector.
    """
    reference = Reference.parse(text)
    if reference.weights is None and trained:
        raise DfmsdError(f"{text} names no weights: write {text},WEIGHTS.pt, or {ULTRALYTICS}BEST.pt of a training")
    return _with_own_classes(reference, reference.read(), trained=trained)


def build_ultralytics(
    config: DetectorConfig, class_names: Sequence[str], renamed: Names | None = None
) -> UltralyticsDetector:
    """Build a student for the classes of a data set, in train mode.

    With ``pretrained: true`` it starts from the reference's weights; of the layers that depend on the classes, those of
    classes with the same name are kept, see `keep_weights`. Otherwise all layers are random.

    Raises:
        DfmsdError: ``pretrained`` is a path, or true without weights, or what `load_ultralytics` refuses.
    """
    reference = Reference.parse(config.arch)
    if not isinstance(config.pretrained, bool):
        raise DfmsdError(
            f"pretrained: {config.pretrained!r} is a file; write {ULTRALYTICS}MODEL.yaml,{config.pretrained} as the "
            "student, with pretrained: true"
        )
    if config.pretrained and reference.weights is None:
        raise DfmsdError(f"pretrained: {config.arch} names no weights; write {config.arch},WEIGHTS.pt, or false")
    read = reference.read()
    detector = UltralyticsDetector(_build(read.layout, len(class_names), config.arch), class_names)
    if config.pretrained:
        trained = with_names(_with_own_classes(reference, read), renamed)
        logger.info(keep_weights(detector, trained, config.arch, _new_layers(detector, trained)))
    detector.config = config
    return detector.train()


def restore_ultralytics(config: DetectorConfig, description: dict[str, Any]) -> UltralyticsDetector:
    """Rebuild a saved student, with random weights, from its description alone.

    Raises:
        DfmsdError: The library is missing, or refuses the description.
    """
    names = description["class_names"]
    model = _build(description["ultralytics"], len(names), f"the description of {config.arch}")
    detector = UltralyticsDetector(model, names)
    detector.config = config
    return detector


def _with_own_classes(reference: Reference, read: Checkpoint, *, trained: bool = True) -> UltralyticsDetector:
    """Build the detector that a reference names, in eval mode."""
    if not read.class_names:
        raise DfmsdError(f"{reference.text}: {reference.layout} does not name the classes: add `names: [...]` to it")
    model = _build(read.layout, len(read.class_names), reference.text)
    if trained:
        load_strictly(model, read.state, str(reference.weights))
    detector = UltralyticsDetector(model, read.class_names).eval()
    detector.image_size = read.image_size
    return detector


def _tasks(text: str) -> Any:
    """Import the library, which is slow, only when it is needed."""
    return import_extra(text, "ultralytics.nn.tasks", "ultralytics")


def _read_layout(reference: Reference) -> dict[str, Any]:
    try:
        layout: dict[str, Any] = _tasks(reference.text).yaml_model_load(reference.layout)
    except DfmsdError:
        raise
    except Exception as error:  # a missing or damaged file
        raise DfmsdError(
            f"{reference.text}: {reference.layout} is neither a YAML file of a model nor one that ultralytics has "
            f"({foreign_message(error)}); expected for example yolo11n.yaml"
        ) from error
    return layout


def _build(layout: Mapping[str, Any], classes: int, text: str) -> Any:
    """Build the library's detector, with its default weights of the losses."""
    tasks = _tasks(text)
    try:
        with _quiet():
            model = tasks.DetectionModel(copy.deepcopy(dict(layout)), nc=classes, verbose=False)
            model.args = import_module("ultralytics.cfg").get_cfg()
    except Exception as error:  # any of its layers may refuse its arguments
        raise DfmsdError(f"{text}: ultralytics cannot build the model ({foreign_message(error)})") from error
    head = type(model.model[-1])
    if head.__name__ != "Detect":
        raise DfmsdError(f"{text} has a head of type {head.__name__}: choose a model whose head is a Detect")
    return model


def _new_layers(student: UltralyticsDetector, trained: UltralyticsDetector) -> list[str]:
    """Return the keys of the class towers if their width, which follows from the number of classes, differs."""
    own, other, last = student.model.state_dict(), trained.model.state_dict(), student.class_rows()
    towers = [key for key in own if CLASS_TOWERS in key]
    same_width = all(own[key].shape == other[key].shape for key in towers if key not in last)
    return [] if same_width else towers


def _quiet() -> AbstractContextManager[None]:
    """Suppress the library's log lines about a model that it builds."""
    return quieted(import_module("ultralytics.utils").LOGGER)
