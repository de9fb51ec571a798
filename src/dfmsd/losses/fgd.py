"""FGD at one pyramid level: objects, background and attention (focal), relations between positions (global)."""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfmsd.errors import DfmsdError
from dfmsd.losses.functional import SPATIAL, channel_attention, spatial_attention
from dfmsd.losses.method import LossContext, Method, refuse_negative
from dfmsd.losses.objects import object_masks


@dataclass(frozen=True)
class FGDOptions:
    """Weights of FGD's four terms, 0 drops one; as published for RetinaNet, GFL and SOLO.

    FCOS (``tau: 0.8``) and RepPoints have 1.6 times as much throughout, Faster and Mask R-CNN 5e-5, 2.5e-5, 5e-5 and
    5e-7.

    Args:
        fg: of the features inside objects.
        bg: of the features outside.
        attention: of the distance of the attentions.
        relation: of the features together with their global context.
        tau: temperature of the attention, > 0.
    """

    fg: float = 1e-3
    bg: float = 5e-4
    attention: float = 5e-4
    relation: float = 5e-6
    tau: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            DfmsdError: a temperature that is not above 0, a negative weight, or none above 0.
        """
        if self.tau <= 0:
            raise DfmsdError(f"loss.tau: {self.tau} is not above 0; the published one is 0.5")
        refuse_negative(self.weights)
        if not any(self.weights.values()):
            raise DfmsdError(f"loss.{', loss.'.join(self.weights)} are all 0: nothing to distil; give one above 0")

    @property
    def weights(self) -> dict[str, float]:
        """Term -> weight."""
        names = [field.name for field in fields(self) if field.name != "tau"]
        return dict(zip(names, astuple(self), strict=False))


class GcBlock(nn.Module):
    r"""Global context of a feature map: what the relation of all positions adds to each of them.

    $W_2 \mathrm{ReLU}(\mathrm{LN}(W_1 \sum_{ij} \mathrm{softmax}_{ij}(w \cdot F) F_{ij}))$, ``C -> C/2 -> C``,
    ``N x C x 1 x 1``; 0 at first.

    Args:
        channels: ``C``.

    Source: GCNet (arXiv 1904.11492), as in FGD (yzd-v/FGD).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 2, 1)
        self.attend = nn.Conv2d(channels, 1, 1, bias=False)  # a softmax over the positions is blind to one
        last = nn.Conv2d(hidden, channels, 1)
        self.transform = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.LayerNorm([hidden, 1, 1]), nn.ReLU(inplace=True), last
        )
        nn.init.kaiming_normal_(self.attend.weight, nonlinearity="relu")
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)

    def forward(self, feature: Tensor) -> Tensor:
        """Give the context of ``N x C x H x W`` as ``N x C x 1 x 1``."""
        scores = self.attend(feature)
        attention = scores.flatten(2).softmax(2).view_as(scores)
        # Not a matrix product: the gradient of one with a vector takes five times as long on a CPU.
        context: Tensor = self.transform((feature * attention).sum(dim=SPATIAL, keepdim=True))
        return context


class FGD(Method):
    r"""Focal and global distillation of one level.

    With $A_s, A_c$ of `functional.spatial_attention` and `functional.channel_attention`, of both nets, and the masks
    of `object_masks`:

    - ``fg`` and ``bg``: $\frac1N \sum M A_s(T) A_c(T) (X - T)^2$ with $M_{fg}$ and $M_{bg}$;
    - ``attention``: $\frac1N (\sum |A_c(X) - A_c(T)| + \sum |A_s(X) - A_s(T)|)$;
    - ``relation``: $\frac1N \sum (X + g_S(X) - T - g_T(T))^2$ with a `GcBlock` $g$ for each net.

    As published, $g_T$ is trained too: the target of ``relation`` is no frozen one. The sums of ``attention`` and
    ``relation`` grow with the area of the level: their published weights belong to inputs of 800 x 1333 pixels.
    ``fg`` grows with the number of objects, ``bg`` with neither.

    Args:
        channels: of the aligned pair.
        options: see `FGDOptions`.

    Source: FGD (arXiv 2111.11837, yzd-v/FGD); differs from the official code in `object_masks`.
    """

    Options = FGDOptions

    def __init__(self, channels: int, options: FGDOptions) -> None:
        super().__init__(channels, options)
        self.options = options
        self.terms = tuple(name for name, weight in options.weights.items() if weight)
        names = ("student", "teacher") if options.relation else ()
        self.relation = nn.ModuleDict({name: GcBlock(channels) for name in names})

    def forward(self, student: Tensor, teacher: Tensor, context: LossContext) -> dict[str, Tensor]:
        """Give the terms ``fg``, ``bg``, ``attention`` and ``relation``, but those of weight 0.

        Args:
            student: aligned, ``N x C x H x W``.
            teacher: ``N x C x H x W``.
            context: boxes and stride.
        """
        weights, tau = self.options.weights, self.options.tau
        n, _, height, width = teacher.shape
        spatial, channel = spatial_attention(teacher, tau), channel_attention(teacher, tau)
        values = {}
        if "fg" in self.terms or "bg" in self.terms:
            masks = object_masks(context.boxes, context.stride, (height, width), teacher.dtype)
            # Summed over channels first: what follows is one map an image, not C.
            errors = channel.flatten(2).mT @ (student - teacher).square().flatten(2)
            errors = errors * spatial.flatten(2) / n
            for name, mask in zip(("fg", "bg"), masks, strict=True):
                values[name] = (mask.flatten(2) * errors).sum()
        if "attention" in self.terms:
            distances = (spatial_attention(student, tau) - spatial, channel_attention(student, tau) - channel)
            values["attention"] = torch.stack([distance.abs().sum() for distance in distances]).sum() / n
        if "relation" in self.terms:
            shift = self.relation["student"](student) - self.relation["teacher"](teacher)
            values["relation"] = F.mse_loss(student + shift, teacher, reduction="sum") / n
        return {name: weights[name] * values[name] for name in self.terms}
