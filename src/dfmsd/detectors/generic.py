"""Adapter of any ``nn.Module``: features by dotted paths, losses and boxes by functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dfmsd.detectors.base import Detector
from dfmsd.detectors.classnames import read_names
from dfmsd.detectors.config import PYTHON, DetectorConfig
from dfmsd.detectors.featurepath import describe_value, find_feature, read_map, refused
from dfmsd.detectors.hooks import Call, FeatureHooks, is_compiled, unwrap, unwrap_parallel
from dfmsd.detectors.levels import DRY_RUN_SIZE, read_levels
from dfmsd.detectors.modulechecks import check_detections, check_functions, check_losses, check_module
from dfmsd.detectors.normalize import Normalize
from dfmsd.detectors.sizes import SizeRange, stated_sizes
from dfmsd.errors import DfmsdError
from dfmsd.types import Detections, FeaturePyramid, Target

Run = Callable[[nn.Module, Tensor], object]
Loss = Callable[[nn.Module, Tensor, Sequence[Target]], Mapping[str, Tensor]]
Decode = Callable[[nn.Module, Tensor, Sequence[tuple[int, int]]], Sequence[Detections]]


class ModuleDetector(Detector):
    """A detector of any framework.

    A path such as ``neck.fpn_convs.2`` is followed through submodules as far as these exist; the rest of it indexes the
    last one's output, a list or tuple by number and a dict by key: ``neck.0`` is the first map of a neck that returns a
    list (and has no submodule ``0``), ``0`` the first of the whole model. Paths are those of the module inside
    ``torch.compile`` and ``DistributedDataParallel``.

    Every forward pass checks that each of these modules runs once and returns a map. As a teacher, the model runs until
    the last of them has run, a compiled one to its end; as a student, as far as ``loss`` runs it. No hooks stay
    on the module, except on a compiled one.

    Args:
        module: The model, which may be compiled or wrapped for data parallelism; kept as ``model``.
        features: Paths of the maps, finest first.
        class_names: Label ``i`` is ``class_names[i]``. Optional for a teacher: without names it detects nothing, and
            the pre-flight reports the correlation of its features with the student's instead of an AP.
        mean: Mean of the channels, see `Normalize`.
        std: Standard deviation of the channels.
        bgr: Whether the model's channel order is blue, green, red.
        run: Function of the model and the normalized images that runs it at least up to the modules of ``features``, in
            eval and in train mode.
        loss: Function of the model, the normalized images and the targets that runs the model once and returns named
            scalars, whose sum is the loss; required for a student. Targets are labels, and boxes in pixels of the
            padded input.
        decode: Function of the model, the normalized images and the unpadded ``(height, width)`` of each image that
            returns a list with a dict for each image: ``boxes``, ``K x 4``, xyxy in pixels of the padded input;
            ``scores``, ``K``; and ``labels``, ``K``, integers that count the classes from 0. Required for evaluation.
        side: Side of the dry run's square input, for a model that takes one size only.
        sizes: Object sizes that each map is responsible for, see `LevelSpec`; they serve ``loss.pairing: auto``.

    Raises:
        DfmsdError: An argument has another type, a name occurs twice, a path does not lead to a map, the maps are not a
            pyramid, or the sizes do not describe it.
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
        sizes: Sequence[SizeRange] | None = None,
    ) -> None:
        super().__init__()
        check_module(module)
        check_functions(run=run, loss=loss, decode=decode)
        paths = read_names(features, "features")
        if not paths:
            raise DfmsdError("features: no path; name the modules whose outputs are the maps, finest first")
        self.model = module
        self.class_names = read_names(class_names, "class_names")
        self.normalize = Normalize(mean, std, bgr=bgr)
        self.run, self.loss, self.decode = run, loss, decode
        kind = type(unwrap(module))
        self.config = DetectorConfig(f"{PYTHON}{kind.__module__}.{kind.__qualname__}")
        self.paths = tuple(find_feature(unwrap(module), path) for path in paths)
        self.levels = read_levels(self, self._dry_run_maps, side=side)
        if any(a.stride > b.stride for a, b in zip(self.levels, self.levels[1:], strict=False)):
            strides = ", ".join(
                f"{path.path} {level.stride}" for path, level in zip(self.paths, self.levels, strict=True)
            )
            raise DfmsdError(f"features: expected maps, finest first, got strides {strides}; reorder them")
        if sizes is not None:
            self.levels = stated_sizes(self.levels, sizes)
        self.permanent_hooks: FeatureHooks | None = None
        if is_compiled(unwrap_parallel(module)):
            # a compiled graph contains the hooks that existed when it was traced, so these stay, and cannot stop it
            self.permanent_hooks = self._hooks()
            self.permanent_hooks.__enter__()

    def features(self, images: Tensor) -> FeaturePyramid:
        """Run the model to the last of the maps: level name -> ``N x C x H/stride x W/stride``.

        Raises:
            DfmsdError: A module did not run, or ran twice, or did not return a map.
        """
        return self._run_with_hooks(partial(self.run, unwrap_parallel(self.model)), images, stop=True)[1]

    def forward(self, images: Tensor, targets: Sequence[Target]) -> tuple[FeaturePyramid, dict[str, Tensor]]:
        """Return the pyramid and the losses of one forward pass.

        Raises:
            DfmsdError: ``loss`` is missing or does not return named scalars; or what `features` raises.
        """
        if self.loss is None:
            raise DfmsdError(
                f"{self._name} can only teach: as a student it needs its loss, pass ModuleDetector(..., "
                "loss=function(model, pixels, targets))"
            )
        named, pyramid = self._run_with_hooks(partial(self.loss, self.model), images, targets)
        return pyramid, check_losses(named, self._name)

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Detect objects, best first; boxes are clipped to each image's unpadded ``(height, width)``.

        Raises:
            DfmsdError: ``decode`` is missing or does not return detections.
        """
        if self.decode is None:
            raise DfmsdError(
                f"{self._name} cannot detect: pass ModuleDetector(..., decode=function(model, pixels, sizes)); a "
                "teacher of features alone does not need it if class_names are left out"
            )
        results = self.decode(unwrap_parallel(self.model), self.normalize(images), sizes)
        if self.permanent_hooks is not None:
            self.permanent_hooks.clear()
        return check_detections(results, sizes, len(self.class_names))

    def description(self) -> dict[str, Any]:
        """Return the arguments that wrap the module again."""
        return {
            "features": [path.path for path in self.paths],
            "image_mean": self.normalize.mean.flatten().tolist(),
            "image_std": self.normalize.std.flatten().tolist(),
            "bgr": self.normalize.bgr,
        }

    def extra_repr(self) -> str:
        """Return the paths, by which adapters of the same module differ."""
        return f"features={[path.path for path in self.paths]}"

    @property
    def _name(self) -> str:
        return type(unwrap(self.model)).__name__

    def _hooks(self, *, stop: bool = False) -> FeatureHooks:
        root = unwrap(self.model)
        return FeatureHooks({path.module: root.get_submodule(path.module) for path in self.paths}, stop=stop)

    def _run_with_hooks(
        self, run: Callable[..., Any], images: Tensor, *args: object, stop: bool = False
    ) -> tuple[Any, FeaturePyramid]:
        """Call a function of the normalized images; return its result, None if stopped, and the recorded maps."""
        result = None
        if self.permanent_hooks is None:
            with self._hooks(stop=stop) as calls:
                result = run(self.normalize(images), *args)
            return result, self._pyramid(calls)
        self.permanent_hooks.clear()
        result = run(self.normalize(images), *args)
        pyramid = self._pyramid(self.permanent_hooks.calls)
        self.permanent_hooks.clear()
        return result, pyramid

    def _pyramid(self, calls: Mapping[str, list[Call]]) -> FeaturePyramid:
        pyramid = {}
        for path, level in zip(self.paths, self.levels, strict=True):
            pyramid[level.name] = value = read_map(path, calls, self.model)
            if value.shape[1] != level.channels:
                raise refused(path, self.model, f"has {value.shape[1]} channels, but had {level.channels} at first")
        return pyramid

    def _dry_run_maps(self, images: Tensor) -> list[Tensor]:
        # to its end, to detect a module that runs again after the last of the others
        with self._hooks() as calls:
            self.run(unwrap(self.model), self.normalize(images))
        maps = [read_map(path, calls, self.model) for path in self.paths]
        side = images.shape[-1]
        for path, value in zip(self.paths, maps, strict=True):
            height, width = value.shape[-2:]
            if height != width or side % width:
                problem = f"is {describe_value(value)} for a side of {side}, not N x C x H x W with an integer stride"
                raise refused(path, self.model, problem)
        return maps
