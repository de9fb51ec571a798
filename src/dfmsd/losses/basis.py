"""Bases: a teacher's channels rotated into those of another detector, so that a new teacher moves the target little."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfmsd.losses.functional import procrustes
from dfmsd.types import FeaturePyramid, LevelSpec

B = TypeVar("B")
BasisName = Literal["auto", "own", "former", "student"]
FIT_IMAGES = 200
"""Training images that a basis is fitted on."""
EPS = 1e-3
"""Added to standard deviations, as in the losses' standardization."""


class Correlation(NamedTuple):
    """Mean correlation of the channels of a teacher's level with the reference's channels of the same index."""

    before: float
    after: float


def common_size(first: Tensor, second: Tensor) -> tuple[int, int]:
    """Return the height and width of the coarser one of two maps, ``N x C x H x W``."""
    return min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3])


class LevelMoments:
    """Running means and covariance of the channels of two levels, in float64.

    Args:
        teacher: number of channels of the teacher's level.
        reference: number of channels of the reference.
    """

    def __init__(self, teacher: int, reference: int) -> None:
        self.split = teacher
        self.cells = 0
        self.total = torch.zeros(teacher + reference, dtype=torch.float64)
        self.products = torch.zeros(teacher + reference, teacher + reference, dtype=torch.float64)

    @torch.no_grad()
    def add(self, teacher: Tensor, reference: Tensor, used: Tensor | None = None) -> None:
        """Add the cells of a batch; the finer of the two maps is averaged to the size of the coarser one.

        Args:
            teacher: ``N x C_T x H x W``.
            reference: ``N x C_N x H' x W'``.
            used: the cells to add, bool, ``N x 1`` x `common_size`; None adds all.
        """
        size = common_size(teacher, reference)
        maps = [F.adaptive_avg_pool2d(feature.float(), size) for feature in (teacher, reference)]
        cells = torch.cat(maps, dim=1).movedim(1, -1).flatten(0, -2)
        if used is not None:
            cells = cells[used.flatten()]
        cells = cells.cpu().double()  # MPS has no float64
        self.cells += len(cells)
        self.total += cells.sum(dim=0)
        self.products += cells.T @ cells

    @property
    def mean(self) -> Tensor:
        """Means of the teacher's channels, then of the reference's."""
        return self.total / self.cells

    @property
    def covariance(self) -> Tensor:
        """Covariance of the teacher's and the reference's channels."""
        return self.products / self.cells - torch.outer(self.mean, self.mean)


class LevelBasis(nn.Module):
    r"""A frozen affine map of one teacher level: $z(T) R$, and the identity until it is fitted.

    $z$ standardizes each channel with its mean and standard deviation over the images of the fit. $R$ is the
    `procrustes` rotation of these features into those of the reference.

    Args:
        teacher: number of channels of the teacher's level.
        reference: number of channels of the reference.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, teacher: int, reference: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.eye(reference, teacher))
        self.register_buffer("bias", torch.zeros(reference))

    @torch.no_grad()
    def fit_to(self, moments: LevelMoments) -> Correlation:
        """Fit the map, and return the correlation before and after."""
        split, covariance = moments.split, moments.covariance
        std = covariance.diagonal().clamp_min(0).sqrt() + EPS
        correlation = covariance / torch.outer(std, std)
        cross = correlation[:split, split:]
        rotation = procrustes(cross)
        rotated_std = (rotation.T @ correlation[:split, :split] @ rotation).diagonal().clamp_min(0).sqrt() + EPS
        weight = (rotation / std[:split, None]).T
        self.weight.copy_(weight)
        self.bias.copy_(-weight @ moments.mean[:split])
        return Correlation(
            before=cross.diagonal().mean().item(),
            after=((rotation * cross).sum(dim=0) / rotated_std).mean().item(),
        )

    def forward(self, feature: Tensor) -> Tensor:
        """Map ``N x C_T x H x W`` to ``N x C_N x H x W``."""
        weight = self.weight[:, :, None, None].to(feature.dtype)
        return F.conv2d(feature, weight, self.bias.to(feature.dtype))


class PyramidBasis(nn.Module):
    """The bases of a teacher's levels.

    Args:
        levels: levels of the teacher.
        references: name of each of these levels that the loss uses -> level of the reference.
        former: whether the reference is the former stage's teacher, and not the student.

    Attributes:
        levels: the same levels, with the channels of their references. Those without one are not mapped, but they
            count where levels are paired.
    """

    fitted: Tensor

    def __init__(
        self, levels: Sequence[LevelSpec], references: Mapping[str, LevelSpec], *, former: bool = False
    ) -> None:
        super().__init__()
        self.former = former
        self.references = dict(references)
        self.channels = {level.name: level.channels for level in levels if level.name in references}
        self.levels = tuple(
            level._replace(channels=references[level.name].channels) if level.name in references else level
            for level in levels
        )
        self.maps = nn.ModuleDict(
            {name: LevelBasis(channels, references[name].channels) for name, channels in self.channels.items()}
        )
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def forward(self, pyramid: FeaturePyramid) -> FeaturePyramid:
        """Map a teacher's pyramid; without gradient, and in float32 also under autocast."""
        with torch.no_grad(), torch.autocast(next(iter(pyramid.values())).device.type, enabled=False):
            return {name: basis(pyramid[name].float()) for name, basis in self.maps.items()}

    def fit_to(
        self,
        batches: Iterable[B],
        teacher: Callable[[B], FeaturePyramid],
        reference: Callable[[B], FeaturePyramid],
    ) -> dict[str, Correlation]:
        """Fit all levels on some images.

        Args:
            batches: images, in any form that ``teacher`` and ``reference`` take.
            teacher: images -> pyramid of the teacher.
            reference: images -> pyramid of the reference.

        Returns:
            Teacher's level -> mean correlation of channels of the same index, before and after.
        """
        moments = {
            name: LevelMoments(channels, self.references[name].channels) for name, channels in self.channels.items()
        }
        for images in batches:
            source, target = teacher(images), reference(images)
            for name, level in self.references.items():
                moments[name].add(source[name], target[level.name])
        self.fitted.fill_(True)
        return {name: basis.fit_to(moments[name]) for name, basis in self.maps.items() if isinstance(basis, LevelBasis)}
