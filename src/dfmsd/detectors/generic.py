"""The detector contract around any ``nn.Module``: features by dotted paths, losses and boxes by functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from dfmsd.detectors.base import Detector
from dfmsd.detectors.build.backbones import DRY_RUN_SIZE
from dfmsd.detectors.config import PYTHON, DetectorConfig
from dfmsd.detectors.hooks import Call, Watch, is_compiled, on_one_device, unwrap
from dfmsd.detectors.normalize import Pixels
from dfmsd.detectors.torchvision.base import Maps, read_levels
from dfmsd.errors import DfmsdError
from dfmsd.types import Detections, FeaturePyramid, Target

Run = Callable[[nn.Module, Tensor], object]
Loss = Callable[[nn.Module, Tensor, Sequence[Target]], Mapping[str, Tensor]]
Decode = Callable[[nn.Module, Tensor, Sequence[tuple[int, int]]], Sequence[Detections]]


class Tap(NamedTuple):
    """Where a feature map is to be had."""

    path: str
    """As it was given."""
    module: str
    """Path of the module; empty for the whole model."""
    keys: tuple[str, ...]
    """What leads from its output to the map."""


class ModuleDetector(Detector):
    """A detector of any framework behind the contract, without a class of its own.

    A path such as ``neck.fpn_convs.2`` is followed through the modules as far as there are any of these names; what is
    left of it picks from the last one's output, a list or tuple by number and a dict by key: ``neck.0`` is the first
    map of a neck that gives a list (and that has no submodule ``0``), ``0`` the first of the whole model. Paths are
    those of the module inside of ``torch.compile`` and ``DistributedDataParallel``.

    Every forward pass checks that each of these modules runs once and gives a map. As a teacher the model runs until
    the last of them has run, a compiled one to its end; as a student, as far as ``loss`` runs it.

    Args:
        module: the model, compiled or wrapped for data parallelism or neither; kept as ``model``.
        features: paths of the maps, finest first.
        class_names: label ``i`` is ``class_names[i]``. A teacher may do without: it is asked for no boxes then, and
            the pre-flight reports the correlation of its features with the student's in place of an AP.
        mean: of the pixels, see `Pixels`.
        std: of the pixels.
        bgr: the model takes blue first.
        run: runs the model on pixels in eval and in train mode, as far as the modules of ``features``.
        loss: model, pixels and targets -> named scalars, whose sum is the loss; a student needs it. It runs the model
            once. Targets are boxes in pixels of the padded input, and labels.
        decode: model, pixels and the unpadded ``(height, width)`` of each image -> detections, with boxes in pixels of
            the padded input; evaluation needs it.
        side: of the square input of the dry run that reads channels and strides, for a model that takes one size only.

    Raises:
        DfmsdError: a path leads to no map, or the maps are no pyramid.
    """

    def __init__(
        self,
        module: nn.Module,
        features: Sequence[str],
        class_names: Sequence[str] = (),
        *,
        mean: Sequence[float],
        std: Sequence[float],
        bgr: bool = False,
        run: Run = nn.Module.__call__,
        loss: Loss | None = None,
        decode: Decode | None = None,
        side: int = DRY_RUN_SIZE,
    ) -> None:
        super().__init__()
        self.model = module
        self.class_names = tuple(class_names)
        self.pixels = Pixels(mean, std, bgr=bgr)
        self.run, self.loss, self.decode = run, loss, decode
        kind = type(unwrap(module))
        self.config = DetectorConfig(f"{PYTHON}{kind.__module__}.{kind.__qualname__}")
        self.taps = tuple(find_tap(unwrap(module), path) for path in features)
        self.levels = read_levels(Maps(self, self._dry_maps), side)
        if not self.levels or any(a.stride > b.stride for a, b in zip(self.levels, self.levels[1:], strict=False)):
            strides = ", ".join(f"{tap.path} {level.stride}" for tap, level in zip(self.taps, self.levels, strict=True))
            raise DfmsdError(f"features: expected maps, finest first, got strides {strides or 'of none'}; reorder them")
        self.standing: Watch | None = None
        if is_compiled(on_one_device(module)):
            # A compiled graph has the hooks that were there when it was made, so these stay, and none stops it.
            self.standing = self._watch()
            self.standing.__enter__()

    def features(self, images: Tensor) -> FeaturePyramid:
        """Run the model to the last of the maps: level name -> ``N x C x H/stride x W/stride``.

        Raises:
            DfmsdError: a module did not run, or ran twice, or gave no map.
        """
        return self._observed(partial(self.run, on_one_device(self.model)), images, stop=True)[1]

    def forward(self, images: Tensor, targets: Sequence[Target]) -> tuple[FeaturePyramid, dict[str, Tensor]]:
        """Give pyramid and the losses of one forward pass.

        Raises:
            DfmsdError: there is no ``loss``, or it gives no named scalars; or what `features` raises.
        """
        if self.loss is None:
            raise DfmsdError(
                f"{self._name} can only teach: as a student it needs its loss, give ModuleDetector(..., "
                "loss=function(model, pixels, targets))"
            )
        named, pyramid = self._observed(partial(self.loss, self.model), images, targets)
        return pyramid, self._scalars(named)

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Detect objects, best first; boxes are clipped to each image's unpadded ``(height, width)``.

        Raises:
            DfmsdError: there is no ``decode``, or it gives something else than detections.
        """
        if self.decode is None:
            raise DfmsdError(
                f"{self._name} gives no boxes: give ModuleDetector(..., decode=function(model, pixels, sizes)); a "
                "teacher of features alone needs none if class_names are left out"
            )
        found = self.decode(on_one_device(self.model), self.pixels(images), sizes)
        if self.standing is not None:
            self.standing.forget()
        if len(found) != len(images):
            raise DfmsdError(f"decode: expected detections of {len(images)} images, got those of {len(found)}")
        return [self._checked(one, size) for one, size in zip(found, sizes, strict=True)]

    def description(self) -> dict[str, Any]:
        """Give what has to be told to wrap the module again."""
        return {
            "features": [tap.path for tap in self.taps],
            "image_mean": self.pixels.mean.flatten().tolist(),
            "image_std": self.pixels.std.flatten().tolist(),
            "bgr": self.pixels.bgr,
        }

    def extra_repr(self) -> str:
        """Tell the paths, by which detectors around the same module differ."""
        return f"features={[tap.path for tap in self.taps]}"

    @property
    def _name(self) -> str:
        return type(unwrap(self.model)).__name__

    def _watch(self, *, stop: bool = False) -> Watch:
        root = unwrap(self.model)
        return Watch({tap.module: root.get_submodule(tap.module) for tap in self.taps}, stop=stop)

    def _observed(
        self, run: Callable[..., Any], images: Tensor, *more: object, stop: bool = False
    ) -> tuple[Any, FeaturePyramid]:
        """Run something on pixels and give its result, unless it is stopped, and the maps that were seen."""
        result = None
        if self.standing is None:
            with self._watch(stop=stop) as calls:
                result = run(self.pixels(images), *more)
            return result, self._pyramid(calls)
        self.standing.forget()
        result = run(self.pixels(images), *more)
        pyramid = self._pyramid(self.standing.calls)
        self.standing.forget()
        return result, pyramid

    def _pyramid(self, calls: Mapping[str, list[Call]]) -> FeaturePyramid:
        pyramid = {}
        for tap, level in zip(self.taps, self.levels, strict=True):
            pyramid[level.name] = value = self._map(tap, calls)
            if value.shape[1] != level.channels:
                raise self._refuse(tap, f"gives {value.shape[1]} channels, and gave {level.channels} at first")
        return pyramid

    def _dry_maps(self, images: Tensor) -> list[Tensor]:
        """Run the model itself to its end, which shows a module that runs once more, behind the last of the others."""
        with self._watch() as calls:
            self.run(unwrap(self.model), self.pixels(images))
        maps = [self._map(tap, calls) for tap in self.taps]
        side = images.shape[-1]
        for tap, value in zip(self.taps, maps, strict=True):
            height, width = value.shape[-2:]
            if height != width or side % width:
                problem = f"gives {_kind(value)} for a side of {side}, so it is no N x C x H x W with a whole stride"
                raise self._refuse(tap, problem)
        return maps

    def _map(self, tap: Tap, calls: Mapping[str, list[Call]]) -> Tensor:
        ran = calls[tap.module]
        if len(ran) != 1:
            often = "did not run" if not ran else "ran more than once"
            compiled = " (a compiled module has to be wrapped before its first call)" if is_compiled(self.model) else ""
            raise self._refuse(tap, f"{often} in one forward pass, expected once{compiled}")
        value, before = ran[0].output, tap.module
        for key in tap.keys:
            parts = _parts(value)
            if key not in parts:
                names = [f"{before}.{part}".lstrip(".") for part in parts]
                raise self._refuse(tap, "is neither a module nor a part of what a module gives", names)
            value, before = parts[key], f"{before}.{key}"
        if not isinstance(value, Tensor) or value.ndim != 4:
            names = [f"{tap.path}.{part}" for part in _parts(value)]
            raise self._refuse(tap, f"gives {_kind(value)}, not a map N x C x H x W", names)
        return value

    def _refuse(self, tap: Tap, problem: str, parts: Sequence[str] = ()) -> DfmsdError:
        names = [*parts, *(name for name, _ in unwrap(self.model).named_modules() if name not in ("", tap.path))]
        nearest = ", ".join(get_close_matches(tap.path, names, n=4, cutoff=0.0))
        return DfmsdError(f"features: {tap.path!r} of {self._name} {problem}; nearest names: {nearest or 'none'}")

    def _scalars(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not isinstance(named, Mapping) or not named:
            raise DfmsdError(f"loss of {self._name}: expected named scalars, got {_kind(named)}; give a dict of them")
        for name, value in named.items():
            if not isinstance(value, Tensor) or value.ndim:
                raise DfmsdError(f"loss of {self._name}: {name} is {_kind(value)}, expected a scalar; sum it up")
        return dict(named)

    def _checked(self, found: Detections, size: tuple[int, int]) -> Detections:
        boxes, scores, labels = found["boxes"], found["scores"], found["labels"]
        if boxes.shape != (len(scores), 4) or labels.shape != scores.shape:
            shapes = ", ".join(_kind(value) for value in (boxes, scores, labels))
            raise DfmsdError(f"decode: expected boxes K x 4, scores K, labels K, got {shapes}")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.class_names):
            raise DfmsdError(
                f"decode: labels {int(labels.min())}..{int(labels.max())} for {len(self.class_names)} class names; "
                "labels count from 0, without a background"
            )
        order = scores.argsort(descending=True, stable=True)
        clipped = clip_boxes_to_image(boxes[order], (int(size[0]), int(size[1])))
        return {"boxes": clipped, "scores": scores[order], "labels": labels[order]}


def find_tap(root: nn.Module, path: str) -> Tap:
    """Follow a path through the modules as far as there are any; the rest are keys into the last one's output."""
    names, module, depth = path.split("."), root, 0
    for name in names:
        child = getattr(module, name, None)
        if not isinstance(child, nn.Module):
            break
        module, depth = child, depth + 1
    return Tap(path, ".".join(names[:depth]), tuple(names[depth:]))


def _parts(value: object) -> dict[str, Any]:
    """Name the parts of an output that has any."""
    if isinstance(value, Mapping):
        return {str(key): part for key, part in value.items()}
    return {str(index): part for index, part in enumerate(value)} if isinstance(value, list | tuple) else {}


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {' x '.join(map(str, value.shape)) or 'without dimensions'}"
    parts = ", ".join(list(_parts(value))[:8])
    return f"a {type(value).__name__}" + (f" of {parts}" if parts else "")
