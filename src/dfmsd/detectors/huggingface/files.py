"""Loading and building models of Hugging Face transformers, and restoring saved students."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import torch

from dfmsd.detectors.classnames import Names, with_names
from dfmsd.detectors.config import DetectorConfig
from dfmsd.detectors.frameworks import HUGGING_FACE
from dfmsd.detectors.huggingface.detector import TransformersDetector, processor_settings, refuse_student
from dfmsd.detectors.huggingface.families import FAMILIES
from dfmsd.detectors.inference import eval_mode
from dfmsd.detectors.inputsizes import longer_side
from dfmsd.detectors.levels import DRY_RUN_SIZE
from dfmsd.detectors.statedict import check_finite
from dfmsd.detectors.transfer import keep_weights
from dfmsd.errors import DfmsdError, foreign_message
from dfmsd.utils.extras import import_extra
from dfmsd.utils.hub import ask_hub

logger = logging.getLogger("dfmsd")
T = TypeVar("T")
FIXED_SIZES = ("anchor_image_size", "eval_size")
"""Keys of a config that fix anchors and positions to one image size; unset, these follow the batch."""
SIZE_KEYS = ("do_resize", "size", "max_size")
"""Keys in the image processor's file of the size that it resizes images to."""
SHORTEST, LONGEST = "shortest_edge", "longest_edge"
"""Keys of a size whose images keep their shape."""
HUB_ID = r"\w[\w.-]*(/\w[\w.-]*)?"
SAVED = "config.json, model.safetensors and preprocessor_config.json, as save_pretrained writes them"


def load_transformers(reference: str, config: Any, *, trained: bool = True) -> TransformersDetector:
    """Load a detector with its own classes, in eval mode.

    Args:
        reference: ``hf:`` and a folder or the id of a model on the hub.
        config: The config that `read_config` read there.
        trained: False leaves the weights random.

    Raises:
        DfmsdError: One of the model's files is missing, or the family is not supported.
    """
    _check_family(config, reference)
    model = load_weights(reference, config) if trained else _from_config(config)
    settings = read_processor_settings(reference, required=trained)
    detector = TransformersDetector(model, _processor(config, settings)).eval()
    side = _trained_side(detector.processor, settings, reference)
    if side is not None:
        detector.image_size = detector.input_sizes.nearest(side)
    return detector


def build_transformers(
    config: DetectorConfig, class_names: Sequence[str], renamed: Names | None = None
) -> TransformersDetector:
    """Build a student for the classes of a data set, in train mode.

    With ``pretrained``, all layers keep their weights; those whose width is the number of classes keep the weights of
    classes with the same name, see `keep_weights`. Without it, all layers are random, including the
    backbone, whose batch normalization is then not frozen, since it has no trained statistics.

    Raises:
        DfmsdError: ``pretrained`` is a path, or false for a family that needs trained weights, or what
            `load_transformers` refuses.
    """
    if not isinstance(config.pretrained, bool):
        raise DfmsdError(
            f"pretrained: {config.pretrained!r} is a file; {config.arch} takes true, for the weights next to its "
            "config.json, or false"
        )
    reference = config.arch
    original = read_config(reference)
    _check_family(original, reference)
    family = FAMILIES[original.model_type]
    if not family.trainable:
        raise refuse_student(original.model_type)
    if family.frozen_norms and not config.pretrained:
        raise DfmsdError(
            f"pretrained: the backbone of a {original.model_type} has no normalization that learns, so it cannot start "
            f"from random weights; set pretrained: true for those in {reference}"
        )
    student = _with_classes(original, class_names)
    for key, value in family.options.items():
        setattr(student, key, value)
    if not config.pretrained and hasattr(student, "freeze_backbone_batch_norms"):
        student.freeze_backbone_batch_norms = False
    settings = read_processor_settings(reference, required=config.pretrained)
    detector = TransformersDetector(_from_config(student), _processor(student, settings))
    if config.pretrained:
        trained = with_names(load_transformers(reference, original), renamed)
        logger.info(keep_weights(detector, trained, reference))
    detector.config = config
    if family.frozen_norms:  # the library freezes its own ResNets whole, since it looks for the names of timm's layers
        for layer in detector.backbone_layers():
            layer.requires_grad_(True)
    _freeze_idle(detector)
    return detector.train()


def restore_transformers(config: DetectorConfig, description: dict[str, Any]) -> TransformersDetector:
    """Rebuild a saved student, with random weights, from its description alone.

    Raises:
        DfmsdError: The library is missing, or refuses the description.
    """
    settings, pixels = (description["transformers"][key] for key in ("config", "pixels"))
    class_names: list[str] = description["class_names"]
    try:
        original = _library(config.arch).AutoConfig.for_model(**settings)
        _check_family(original, config.arch)
        model = _from_config(_with_classes(original, class_names))
        detector = TransformersDetector(model, _processor(original, pixels))
    except DfmsdError:
        raise
    except Exception as error:  # a damaged description raises any kind of exception in the library
        raise DfmsdError(
            f"transformers cannot use the description of {config.arch} ({foreign_message(error)})"
        ) from error
    detector.config = config
    return detector


def _library(reference: str) -> Any:
    """Import the library, which is slow, only when it is needed."""
    return import_extra(reference, "transformers", "transformers")


def read_config(reference: str) -> Any:
    """Read the library's config of a model.

    Raises:
        DfmsdError: The library or the model is missing.
    """
    config = _fetch(reference, _library(reference).AutoConfig.from_pretrained)
    for key in FIXED_SIZES:
        if hasattr(config, key):
            setattr(config, key, None)
    return config


def _check_family(config: Any, reference: str) -> None:
    if config.model_type not in FAMILIES:
        raise DfmsdError(
            f"{reference} is a {config.model_type}: expected a detector of type {', '.join(FAMILIES)} or, "
            "as a teacher without a head, a model that has an AutoBackbone, such as swin or dinov2"
        )


def load_weights(reference: str, config: Any, kind: Any = None, optional_layers: tuple[str, ...] = ()) -> Any:
    """Load a model, and refuse files with missing weights, which would stay random.

    Args:
        reference: Reference of the model.
        config: Config of the model.
        kind: Class of the model; None takes the detector that fits the config.
        optional_layers: Prefixes of the names of layers that a file may lack.

    Raises:
        DfmsdError: The file is missing, does not fit the config, or has values that are not finite.
    """
    load = (kind or _library(reference).AutoModelForObjectDetection).from_pretrained
    model, info = _fetch(
        reference,
        load,
        config=config,
        use_safetensors=True,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported below, with the missing ones
    )
    missing = [key for key in sorted(info["missing_keys"]) if not key.startswith(optional_layers)]
    missing += sorted(key for key, *_ in info["mismatched_keys"])
    if missing:
        raise DfmsdError(
            f"{reference}: its weights do not fit its config.json: {len(missing)} missing or of another shape, such as "
            f"{missing[0]}; pass the folder of a complete model"
        )
    check_finite(model, reference)
    return model


def _from_config(config: Any) -> Any:
    model: Any = _library(config.model_type).AutoModelForObjectDetection.from_config(
        config, dtype=torch.float32, trust_remote_code=False
    )
    return model


def read_processor_settings(reference: str, *, required: bool) -> dict[str, Any]:
    """Read the settings in the image processor's file; missing ones are the defaults of its class.

    Raises:
        DfmsdError: The file is required and missing.
    """
    read = import_module("transformers.models.auto.image_processing_auto").get_image_processor_config
    settings: dict[str, Any] = _fetch(reference, read)
    if required and not settings:
        raise DfmsdError(
            f"{reference} has no preprocessor_config.json, which states the normalization of its training images; "
            "put the image processor's file next to config.json"
        )
    return settings


def _processor(config: Any, settings: dict[str, Any]) -> Any:
    kind = getattr(_library(config.model_type), FAMILIES[config.model_type].processor)
    known = processor_settings(kind())
    return kind(**{key: value for key, value in settings.items() if key in known})


def _trained_side(processor: Any, settings: dict[str, Any], reference: str) -> float | None:
    """Return the longer side that an image processor's file resizes a usual image to; None if it does not resize."""
    try:
        sized = type(processor)(**{key: settings[key] for key in SIZE_KEYS if key in settings})
        size = {key: float(value) for key, value in dict(sized.size).items()}
    except Exception as error:  # the library's readers raise any kind of exception
        raise DfmsdError(
            f"{reference}: size in its preprocessor_config.json is not that of images ({foreign_message(error)});"
            " use the file that belongs to the weights"
        ) from error
    if not sized.do_resize:
        return None
    if SHORTEST in size:
        return longer_side(size[SHORTEST], size.get(LONGEST))
    return max(size.values())


def _freeze_idle(detector: TransformersDetector) -> None:
    """Freeze what no map depends on in the backbone: tokens for masked patches, and layers behind the last map."""
    backbone = [parameter for layer in detector.backbone_layers() for parameter in layer.parameters()]
    learning = [parameter for parameter in backbone if parameter.requires_grad]
    side = detector.input_sizes.fitting(DRY_RUN_SIZE)
    with eval_mode(detector):
        total = torch.stack([value.sum() for value in detector.maps(torch.zeros(1, 3, side, side))]).sum()
    for parameter, gradient in zip(learning, torch.autograd.grad(total, learning, allow_unused=True), strict=True):
        parameter.requires_grad_(gradient is not None)


def _with_classes(config: Any, class_names: Sequence[str]) -> Any:
    """Copy a config with other classes."""
    copied = copy.deepcopy(config)
    copied.id2label = dict(enumerate(class_names))
    copied.label2id = {name: label for label, name in copied.id2label.items()}
    return copied


def _fetch(reference: str, get: Callable[..., T], **options: Any) -> T:
    """Call one of the library's loading functions quietly, and convert its errors."""
    name = reference.removeprefix(HUGGING_FACE)
    local = name != "" and Path(name).is_dir()
    if not local and not re.fullmatch(HUB_ID, name):
        raise DfmsdError(f"{reference}: there is no folder {name!r}, and an id on the hub has the form owner/model")
    try:
        with _quiet(_library(reference)):
            if not local:
                ask_hub(name)
            return get(name, local_files_only=local, trust_remote_code=False, **options)
    except Exception as error:  # the library's readers raise any kind of exception
        if local:
            raise DfmsdError(f"{reference}: {foreign_message(error)}; the folder must contain {SAVED}") from error
        raise DfmsdError(
            f"{reference}: there is no folder {name}, and it cannot be loaded from the Hugging Face hub "
            f"({foreign_message(error)}); download the model elsewhere (hf download {name}) and pass the path of its "
            f"folder, {HUGGING_FACE}FOLDER"
        ) from error


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Suppress progress bars, and warnings about what dfmsd checks itself."""
    settings = library.utils.logging
    bars, verbosity = settings.is_progress_bar_enabled(), settings.get_verbosity()
    settings.disable_progress_bar()
    settings.set_verbosity_error()
    try:
        yield
    finally:
        settings.set_verbosity(verbosity)
        if bars:
            settings.enable_progress_bar()
