"""torchvision's detectors with weights from a training of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from torch import nn

from dfmsd.detectors.base import UNUSED_CLASSES
from dfmsd.detectors.config import KEYPOINTS, torchvision_archs
from dfmsd.detectors.frameworks import TORCHVISION
from dfmsd.detectors.statedict import StateDict, find_model, load_strictly, read_state_dict
from dfmsd.detectors.torchvision.base import TorchvisionDetector
from dfmsd.detectors.torchvision.models import WITHOUT_BACKGROUND
from dfmsd.detectors.torchvision.wrap import keypoints_refused, wrap_torchvision
from dfmsd.errors import DfmsdError

USAGE = f"{TORCHVISION}BUILDER,WEIGHTS.pth,CLASSES.txt"
BACKGROUND = "background"
"""What a list of classes may begin with where label 0 is the background, in any case and between underscores."""


class Reference(NamedTuple):
    """``torchvision:BUILDER,WEIGHTS.pth,CLASSES.txt``."""

    text: str
    arch: str
    """The function of torchvision that built the model, such as ``fasterrcnn_resnet50_fpn``."""
    weights: Path
    classes: Path | None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Split a reference at its commas.

        Raises:
            DfmsdError: It has another form, the builder is unknown, or a file is missing.
        """
        arch, _, rest = text.removeprefix(TORCHVISION).partition(",")
        weights, _, classes = rest.partition(",")
        if not (arch and weights):
            raise DfmsdError(
                f"{text}: expected {USAGE}, with the function that built the model, such as fasterrcnn_resnet50_fpn"
            )
        if arch.startswith(KEYPOINTS):
            raise keypoints_refused(arch)
        if arch not in torchvision_archs():
            raise DfmsdError(f"{text}: {arch!r} is not one of torchvision's builders, {', '.join(torchvision_archs())}")
        reference = cls(text, arch, Path(weights).expanduser(), Path(classes).expanduser() if classes else None)
        for path in (reference.weights, reference.classes):
            if path is not None and not path.is_file():
                raise DfmsdError(f"{text}: there is no file {str(path)!r}")
        return reference

    @property
    def has_background(self) -> bool:
        """Whether label 0 is the background."""
        return not self.arch.startswith(WITHOUT_BACKGROUND)


def load_torchvision_file(text: str, *, trained: bool = True) -> TorchvisionDetector:
    """Load a detector of torchvision with weights from a file, in eval mode.

    The file is a state dict, or the checkpoint of a training with one; no code in it is executed. It does not say how
    the model was called: mean and standard deviation of the images are the builder's defaults.

    Args:
        text: ``torchvision:BUILDER,WEIGHTS.pth,CLASSES.txt``. The last is a text file with a class name on each line,
            in the order of the model's labels; the background of families that have one may be left out.
        trained: False leaves the weights random.

    Raises:
        DfmsdError: A file is missing or cannot be read safely, the weights are of another model, or the names are not
            as many as its classes.
    """
    reference = Reference.parse(text)
    state = read_weights(reference.arch, reference.weights)
    outputs = count_outputs(reference.arch, state, reference.weights)
    names, labels = _read_classes(reference, outputs)
    model = _build(reference.arch, outputs)
    if trained:
        load_strictly(model, state, reference.weights)
    return wrap_torchvision(model, names, labels).eval()


def read_weights(arch: str, source: Path) -> StateDict:
    """Read a model's weights from a file that may hold those of a whole training.

    Args:
        arch: Name of torchvision's builder.
        source: The file.

    Raises:
        DfmsdError: The file cannot be read safely, or the model is not in it, or more than once.
    """
    with torch.device("meta"):
        keys = _build(arch, 2).state_dict().keys()
    return find_model(read_state_dict(source), keys, source, arch)


def count_outputs(arch: str, state: StateDict, source: Path) -> int:
    """Return the number of labels that weights tell apart, the background included where the family has one.

    Args:
        arch: Name of torchvision's builder.
        state: The weights.
        source: Their file, for the message.

    Raises:
        DfmsdError: The weights are of another model.
    """
    with torch.device("meta"):
        two, three = (_build(arch, outputs).state_dict() for outputs in (2, 3))
    # of the layer that predicts the classes, whose rows grow with their number
    key = next(key for key in two if two[key].shape != three[key].shape)
    rows = len(three[key]) - len(two[key])
    if state[key].shape[1:] != two[key].shape[1:] or len(state[key]) % rows:
        raise DfmsdError(f"{source} has no weights of {arch}: the shape of {key} is {tuple(state[key].shape)}")
    return len(state[key]) // rows


def _build(arch: str, outputs: int) -> nn.Module:
    model: nn.Module = torchvision.models.get_model(arch, weights=None, weights_backbone=None, num_classes=outputs)
    return model


def _read_classes(reference: Reference, outputs: int) -> tuple[list[str], list[int]]:
    """Return the names of the classes and their labels."""
    classes = outputs - reference.has_background
    expected = f"{outputs} labels, the background and " * reference.has_background + f"{classes} classes"
    if reference.classes is None:
        raise DfmsdError(
            f"{reference.text}: the weights tell apart {expected}, and do not name them; write "
            f"{reference.text},CLASSES.txt, with a name on each line in the order of the labels"
        )
    try:
        lines = reference.classes.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DfmsdError(f"{reference.classes} is not a text in UTF-8: save it in this encoding") from error
    listed = [line.strip() for line in lines if line.strip()]
    if len(listed) == classes:
        names = dict(enumerate(listed, start=outputs - classes))
    elif len(listed) == outputs and listed[0].casefold().strip("_") == BACKGROUND:
        names = dict(enumerate(listed))
        del names[0]
    else:
        raise DfmsdError(
            f"{reference.classes} has {len(listed)} name(s), but {reference.weights} tells apart {expected}: list one "
            f"on each line, in the order of the labels, where label 0 may be called {BACKGROUND}"
        )
    used = {label: name for label, name in names.items() if name not in UNUSED_CLASSES}
    if not used:
        raise DfmsdError(f"{reference.classes} names no class, only labels without objects")
    repeated = sorted({name for name in used.values() if list(used.values()).count(name) > 1})
    if repeated:
        raise DfmsdError(f"{reference.classes}: {', '.join(repeated)} occurs more than once")
    return list(used.values()), list(used)
