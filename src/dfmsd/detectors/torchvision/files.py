"""torchvision's detectors with weights from a training of the user's own."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from dfmsd.data.formats.layout import check_names
from dfmsd.data.formats.text import read_text
from dfmsd.detectors.base import UNUSED_CLASSES
from dfmsd.detectors.config import KEYPOINTS, torchvision_archs
from dfmsd.detectors.frameworks import TORCHVISION
from dfmsd.detectors.statedict import StateDict, find_model, load_strictly, read_state_dict
from dfmsd.detectors.torchvision.base import TorchvisionDetector
from dfmsd.detectors.torchvision.models import build_untrained, has_background
from dfmsd.detectors.torchvision.wrap import keypoints_refused, wrap_categories
from dfmsd.errors import DfmsdError, suggest

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
            builders = torchvision_archs()
            hint = suggest(arch, builders, "choose one of them")
            raise DfmsdError(f"{text}: {arch!r} is not one of torchvision's builders, {', '.join(builders)}; {hint}")
        reference = cls(text, arch, Path(weights).expanduser(), Path(classes).expanduser() if classes else None)
        for path in (reference.weights, reference.classes):
            if path is not None and not path.is_file():
                raise DfmsdError(f"{text}: there is no file {str(path)!r}")
        return reference


def load_torchvision_file(text: str, *, trained: bool = True) -> TorchvisionDetector:
    """Load a detector of torchvision with weights from a file, in eval mode.

    The file is a state dict, or the checkpoint of a training with one; no code in it is executed. It does not say how
    the model was called: mean, standard deviation and size of the images are the builder's defaults.

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
    categories = _read_categories(reference, outputs)
    model = build_untrained(reference.arch, outputs)
    if trained:
        load_strictly(model, state, reference.weights)
    return wrap_categories(model, categories).eval()


def read_weights(arch: str, source: Path) -> StateDict:
    """Read a model's weights from a file that may hold those of a whole training.

    Args:
        arch: Name of torchvision's builder.
        source: The file.

    Raises:
        DfmsdError: The file cannot be read safely, or the model is not in it, or more than once.
    """
    return find_model(read_state_dict(source), _shapes(arch, 2), source, arch)


def count_outputs(arch: str, state: StateDict, source: Path) -> int:
    """Return the number of labels that weights tell apart, the background included where the family has one.

    Args:
        arch: Name of torchvision's builder.
        state: The weights.
        source: Their file, for the message.

    Raises:
        DfmsdError: The weights are of another model.
    """
    two, three = _shapes(arch, 2), _shapes(arch, 3)
    # of the layer that predicts the classes, whose rows grow with their number
    key = next(key for key in two if two[key] != three[key])
    rows = three[key][0] - two[key][0]
    if state[key].shape[1:] != two[key][1:] or len(state[key]) % rows:
        raise DfmsdError(f"{source} has no weights of {arch}: the shape of {key} is {tuple(state[key].shape)}")
    return len(state[key]) // rows


@cache
def _shapes(arch: str, outputs: int) -> dict[str, torch.Size]:
    """Return the shapes in the state dict of a model, which is not kept."""
    with torch.device("meta"):
        return {key: value.shape for key, value in build_untrained(arch, outputs).state_dict().items()}


def _read_categories(reference: Reference, outputs: int) -> list[str]:
    """Return the name of each label, from 0 on."""
    background = has_background(reference.arch)
    classes = outputs - background
    expected = f"{outputs} labels, the background and " * background + f"{classes} classes"
    if reference.classes is None:
        raise DfmsdError(
            f"{reference.text}: the weights tell apart {expected}, and do not name them; write "
            f"{reference.text},CLASSES.txt, with a name on each line in the order of the labels"
        )
    listed = [line.strip() for line in read_text(reference.classes).splitlines() if line.strip()]
    if len(listed) == outputs and background and listed[0].casefold().strip("_") == BACKGROUND:
        del listed[0]
    if len(listed) != classes:
        raise DfmsdError(
            f"{reference.classes} has {len(listed)} name(s), but {reference.weights} tells apart {expected}: list one "
            f"on each line, in the order of the labels, where label 0 may be called {BACKGROUND}"
        )
    used = {number: name for number, name in enumerate(listed) if name not in UNUSED_CLASSES}
    if not used:
        raise DfmsdError(f"{reference.classes} names no class, only labels without objects")
    check_names(used, reference.classes)
    return [UNUSED_CLASSES[0]] * background + listed
