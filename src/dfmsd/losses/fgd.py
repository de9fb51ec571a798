"""FGD at one pyramid level."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from dfmsd.errors import DfmsdError
from dfmsd.losses import functional
from dfmsd.losses.functional.attention import SPATIAL
from dfmsd.losses.method import LossContext, Method, refuse_negative

TERMS = ("fg", "bg", "attention", "relation")


@dataclass(frozen=True)
class FGDOptions:
    """Weights of FGD's four terms, as published for RetinaNet, GFL and SOLO; 0 drops a term.

    For FCOS (``tau: 0.8``) and RepPoints all weights are 1.6 times as large; for Faster and Mask R-CNN they are 5e-5,
    2.5e-5, 5e-5 and 5e-7.

    Args:
        fg: weight of the error of the features inside objects.
        bg: weight of the error of the features outside objects.
        attention: weight of the distance between the attention maps.
        relation: weight of the error of the features with their global context added.
        tau: temperature of the attention, > 0.
    """

    fg: float = 1e-3
    bg: float = 5e-4
    attention: float = 5e-4
    relation: float = 5e-6
    tau: float = 0.5

    def __post_init__(self) -> None:
        """Refuse impossible values.

        Raises:
            DfmsdError: a temperature that is not above 0, a negative weight, or no weight above 0.
        """
        if self.tau <= 0:
            raise DfmsdError(f"loss.tau must be above 0, got {self.tau}; the published value is 0.5")
        refuse_negative(self.weights)
        if not any(self.weights.values()):
            raise DfmsdError(f"loss.{', loss.'.join(TERMS)} are all 0, so nothing is distilled; set one above 0")

    @property
    def weights(self) -> dict[str, float]:
        """Term -> weight."""
        return {name: getattr(self, name) for name in TERMS}


class GlobalContext(nn.Module):
    r"""Context of a feature map, pooled by attention over all positions.

    $W_2 \mathrm{ReLU}(\mathrm{LN}(W_1 \sum_{ij} \mathrm{softmax}_{ij}(w \cdot F) F_{ij}))$, ``C -> C/2 -> C``; 0 at
    initialization.

    Args:
        channels: ``C``.

    Source: GCNet (arXiv 1904.11492), as in FGD (yzd-v/FGD).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 2, 1)
        self.attend = nn.Conv2d(channels, 1, 1, bias=False)  # a softmax over positions cancels a bias
        last = nn.Conv2d(hidden, channels, 1)
        self.transform = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.LayerNorm([hidden, 1, 1]), nn.ReLU(inplace=True), last
        )
        nn.init.kaiming_normal_(self.attend.weight, nonlinearity="relu")
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)

    def forward(self, feature: Tensor) -> Tensor:
        """Compute the context of ``N x C x H x W`` as ``N x C x 1 x 1``."""
        scores = self.attend(feature)
        attention = scores.flatten(2).softmax(2).view_as(scores)
        # No matrix product: the gradient of one with a vector takes five times as long on a CPU.
        context: Tensor = self.transform((feature * attention).sum(dim=SPATIAL, keepdim=True))
        return context


class FGD(Method):
    r"""Focal and global distillation of one level.

    With the attentions $A_s, A_c$ of both detectors (`functional.feature_attention`) and the masks of
    `functional.object_masks`:

    - ``fg`` and ``bg``: $\frac1N \sum M A_s(T) A_c(T) (X - T)^2$ with $M_{fg}$ and $M_{bg}$;
    - ``attention``: $\frac1N (\sum |A_c(X) - A_c(T)| + \sum |A_s(X) - A_s(T)|)$;
    - ``relation``: $\frac1N \sum (X + g_S(X) - T - g_T(T))^2$ with a `GlobalContext` $g$ for each detector.

    As published, $g_T$ is trained too, so the target of ``relation`` is not frozen. The sums of ``attention`` and
    ``relation`` grow with the area of the level: their published weights belong to inputs of 800 x 1333 pixels.
    ``fg`` grows with the number of objects, ``bg`` with neither of the two.

    Args:
        channels: of the aligned pair.
        options: see `FGDOptions`.

    Source: FGD (arXiv 2111.11837, yzd-v/FGD). Differs from the official code in `functional.object_masks`.
    """

    name = "fgd"
    Options = FGDOptions

    def __init__(self, channels: int, options: FGDOptions) -> None:
        super().__init__(channels, options)
        self.options = options
        self.terms = tuple(name for name, weight in options.weights.items() if weight)
        names = ("student", "teacher") if options.relation else ()
        self.relation = nn.ModuleDict({name: GlobalContext(channels) for name in names})

    def forward(self, student: Tensor, teacher: Tensor, context: LossContext) -> dict[str, Tensor]:
        """Compute the terms ``fg``, ``bg``, ``attention`` and ``relation``, except those of weight 0.

        The arguments are those of `Method.forward`; the boxes are required by ``fg`` and ``bg``.
        """
        attention = functional.feature_attention(teacher, self.options.tau)
        values = {}
        if "fg" in self.terms or "bg" in self.terms:
            boxes, size = self.require(context.boxes, "boxes"), (teacher.shape[2], teacher.shape[3])
            masks = functional.object_masks(boxes, context.stride, size, teacher.dtype)
            values["fg"], values["bg"] = functional.fgd_focal(student, teacher, attention, *masks)
        if "attention" in self.terms:
            student_attention = functional.feature_attention(student, self.options.tau)
            values["attention"] = functional.fgd_attention(student_attention, attention)
        if "relation" in self.terms:
            contexts = self.relation["student"](student), self.relation["teacher"](teacher)
            values["relation"] = functional.fgd_relation(student, teacher, *contexts)
        weights = self.options.weights
        return {name: weights[name] * values[name] for name in self.terms}
