"""Models of Hugging Face transformers: from a folder or the hub, from a configuration, and from a saved student."""

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

from dfmsd.detectors.config import HUGGING_FACE, DetectorConfig, check_whole
from dfmsd.detectors.huggingface.detector import FAMILIES, TransformersDetector, pixels_of, refuse_student
from dfmsd.errors import DfmsdError, foreign_message
from dfmsd.utils.extras import import_extra

logger = logging.getLogger("dfmsd")
T = TypeVar("T")
CLASS_LAYERS = ("class_embed", "enc_score_head")
"""Parts of the names of a student's layers whose width is the number of classes."""
FIXED_SIZES = ("anchor_image_size", "eval_size")
"""Keys of a config that tie anchors and positions to one image size; they follow the batch where these are unset."""
HUB_ID = r"\w[\w.-]*(/\w[\w.-]*)?"
SAVED = "config.json, model.safetensors and preprocessor_config.json, as save_pretrained writes them"


def load_transformers(reference: str, config: Any, *, trained: bool = True) -> TransformersDetector:
    """Load a detector with its own classes, in eval mode.

    Args:
        reference: ``hf:`` and a folder or the id of a model on the hub.
        config: that `read_config` found there.
        trained: False leaves the weights random.

    Raises:
        DfmsdError: one of the model's files is missing, or the family is not supported.
    """
    _check_family(config, reference)
    model = load_weights(reference, config) if trained else _from_config(config)
    return TransformersDetector(model, _processor(config, read_pixels(reference, needed=trained))).eval()


def build_transformers(config: DetectorConfig, class_names: Sequence[str]) -> TransformersDetector:
    """Build a student for the classes of a data set, in train mode.

    With ``pretrained`` all layers keep their weights but those whose width is the number of classes, and these too if
    the classes are the same, in the same order. Without, all are random, those of the backbone too, whose batch
    normalisation then is not frozen: its statistics would be nobody's.

    Raises:
        DfmsdError: a key that has no meaning here, or what `load_transformers` refuses.
    """
    _check_keys(config)
    reference = config.arch
    theirs = read_config(reference)
    _check_family(theirs, reference)
    if not FAMILIES[theirs.model_type].learns:
        raise refuse_student(theirs.model_type)
    own = _with_classes(theirs, class_names)
    if not config.pretrained:
        own.freeze_backbone_batch_norms = False
    model = _from_config(own)
    if config.pretrained:
        _copy_weights(load_weights(reference, theirs), model, reference)
    detector = TransformersDetector(model, _processor(own, read_pixels(reference, needed=bool(config.pretrained))))
    detector.config = config
    return detector.train()


def restore_transformers(config: DetectorConfig, description: dict[str, Any]) -> TransformersDetector:
    """Build a saved student again, with random weights; nothing but its description is read.

    Raises:
        DfmsdError: the library is missing, or refuses the description.
    """
    settings, pixels = (description["transformers"][key] for key in ("config", "pixels"))
    class_names: list[str] = description["class_names"]
    try:
        theirs = _library(config.arch).AutoConfig.for_model(**settings)
        _check_family(theirs, config.arch)
        detector = TransformersDetector(_from_config(_with_classes(theirs, class_names)), _processor(theirs, pixels))
    except DfmsdError:
        raise
    except Exception as error:  # a foreign description breaks the library in any way
        raise DfmsdError(
            f"the description of {config.arch} is of no use to transformers ({foreign_message(error)})"
        ) from error
    detector.config = config
    return detector


def _library(reference: str) -> Any:
    """Import the library, which is slow, only where it is needed."""
    return import_extra(reference, "transformers", "transformers")


def read_config(reference: str) -> Any:
    """Read the library's config of a model.

    Raises:
        DfmsdError: the library or the model is missing.
    """
    config = _fetch(reference, _library(reference).AutoConfig.from_pretrained)
    for key in FIXED_SIZES:
        if hasattr(config, key):
            setattr(config, key, None)
    return config


def _check_family(config: Any, reference: str) -> None:
    if config.model_type not in FAMILIES:
        raise DfmsdError(
            f"{reference} is a {config.model_type}: of transformers' detectors those of type {', '.join(FAMILIES)} are "
            "supported, and as teachers without a head the models that have an AutoBackbone, such as swin or dinov2"
        )


def load_weights(reference: str, config: Any, kind: Any = None, fresh: tuple[str, ...] = ()) -> Any:
    """Load a model; weights that are missing would be random ones.

    Args:
        reference: of the model.
        config: of the model.
        kind: class of the model; None takes the detector that fits the config.
        fresh: how the names of layers begin that a file may lack.

    Raises:
        DfmsdError: the file is missing or does not fit the config.
    """
    load = (kind or _library(reference).AutoModelForObjectDetection).from_pretrained
    model, found = _fetch(
        reference,
        load,
        config=config,
        use_safetensors=True,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are told, with those that are missing
    )
    missing = [key for key in sorted(found["missing_keys"]) if not key.startswith(fresh)]
    missing += sorted(key for key, *_ in found["mismatched_keys"])
    if missing:
        raise DfmsdError(
            f"{reference}: its weights do not fit its config.json: {len(missing)} missing or of another shape, such as "
            f"{missing[0]}; give the folder of a whole model"
        )
    return model


def _from_config(config: Any) -> Any:
    model: Any = _library(config.model_type).AutoModelForObjectDetection.from_config(
        config, dtype=torch.float32, trust_remote_code=False
    )
    return model


def read_pixels(reference: str, *, needed: bool) -> dict[str, Any]:
    """Read what the image processor's file tells of pixels; the rest are the defaults of its class.

    Raises:
        DfmsdError: there is no such file, and it is needed.
    """
    read = import_module("transformers.models.auto.image_processing_auto").get_image_processor_config
    pixels: dict[str, Any] = _fetch(reference, read)
    if needed and not pixels:
        raise DfmsdError(
            f"{reference} has no preprocessor_config.json, which tells the pixels that its weights were trained on; "
            "put the one of the image processor beside config.json"
        )
    return pixels


def _processor(config: Any, pixels: dict[str, Any]) -> Any:
    kind = getattr(_library(config.model_type), FAMILIES[config.model_type].processor)
    known = pixels_of(kind())
    return kind(**{key: value for key, value in pixels.items() if key in known})


def _with_classes(config: Any, class_names: Sequence[str]) -> Any:
    own = copy.deepcopy(config)
    own.id2label = dict(enumerate(class_names))
    own.label2id = {name: label for label, name in own.id2label.items()}
    return own


def _copy_weights(trained: Any, model: Any, reference: str) -> None:
    """Give a model of other classes the weights of a trained one, and say which layers stay fresh."""
    same = [name.casefold() for name in _names(trained)] == [name.casefold() for name in _names(model)]
    state = {
        key: value
        for key, value in trained.state_dict().items()
        if same or not any(layer in key for layer in CLASS_LAYERS)
    }
    fresh = model.load_state_dict(state, strict=False).missing_keys
    if fresh:
        layers = dict.fromkeys(key.rpartition(".")[0] for key in fresh)
        logger.info("%s: fresh layers for %d classes: %s", reference, len(_names(model)), ", ".join(layers))


def _names(model: Any) -> list[str]:
    return [name for _, name in sorted(model.config.id2label.items())]


def _check_keys(config: DetectorConfig) -> None:
    check_whole(config)
    if not isinstance(config.pretrained, bool):
        raise DfmsdError(
            f"pretrained: {config.pretrained!r} is a file; {config.arch} takes true, for the weights beside its "
            "config.json, or false"
        )


def _fetch(reference: str, get: Callable[..., T], **options: Any) -> T:
    """Call one of the library's loading functions, quietly, and put its complaints into one line."""
    name = reference.removeprefix(HUGGING_FACE)
    local = name != "" and Path(name).is_dir()
    if not local and not re.fullmatch(HUB_ID, name):
        raise DfmsdError(f"{reference}: there is no folder {name!r}, and an id on the hub looks like owner/model")
    try:
        with _quiet(_library(reference)):
            return get(name, local_files_only=local, trust_remote_code=False, **options)
    except Exception as error:  # the library lets through what its many readers raise
        if local:
            raise DfmsdError(f"{reference}: {foreign_message(error)}; the folder has to hold {SAVED}") from error
        raise DfmsdError(
            f"{reference}: there is no folder {name}, and the Hugging Face hub does not give it "
            f"({foreign_message(error)}); download the model elsewhere (hf download {name}) and give the path of its "
            f"folder, {HUGGING_FACE}FOLDER"
        ) from error


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Leave out progress bars, and warnings on what is checked here."""
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
