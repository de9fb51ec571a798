from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from dfmsd import losses
from dfmsd.data.config import DataConfig
from dfmsd.distillation.stages import StageConfig
from dfmsd.engine.config import DistillConfig
from dfmsd.errors import DfmsdError
from dfmsd.losses import LOSSES, LossContext, Method, register
from dfmsd.types import LevelSpec

LEVELS = [LevelSpec(f"p{i}", 2, 2**i) for i in (3, 4)]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    with mock.patch.dict(LOSSES):
        yield


@dataclass(frozen=True)
class Options:
    scale: float = 1.0


class Constant(Method):
    Options = Options
    terms = ("constant",)

    def __init__(self, channels: int, options: Options) -> None:
        super().__init__(channels, options)
        self.scale = options.scale

    def forward(self, student: Tensor, teacher: Tensor, context: LossContext) -> dict[str, Tensor]:
        self.require(context.size, "size")
        return {"constant": self.scale * student.new_ones(())}


def test_the_table_names_every_loss_as_the_loss_names_itself() -> None:
    assert sorted(LOSSES) == [
        "amd",
        "crosskd",
        "cwd",
        "detrdistill",
        "dfmsd",
        "dmkd",
        "fgd",
        "fitnet",
        "ld",
        "mgd",
        "pkd",
    ]
    assert all(method.name == name for name, method in LOSSES.items())


def test_a_registered_loss_builds_from_a_name_and_from_a_config() -> None:
    assert register("constant")(Constant) is LOSSES["constant"] is Constant
    pyramid = {level.name: torch.zeros(1, 2, 4, 4) for level in LEVELS}
    for loss in ("constant", {"name": "constant"}, [{"name": "constant"}]):
        criterion = losses.build(loss, LEVELS, LEVELS)
        assert criterion(pyramid, pyramid, size=(32, 32)) == {"constant/p3": 1.0, "constant/p4": 1.0}
    with pytest.raises(DfmsdError, match="the loss constant needs size: pass size= to the criterion"):
        criterion(pyramid, pyramid)
    config = DistillConfig(
        data=DataConfig("data"), out="run", stages=[StageConfig(1, "teacher")], loss={"name": "constant", "scale": 2.0}
    )
    assert losses.resolve_loss(config.loss)["scale"] == 2.0
    with pytest.raises(DfmsdError, match=r"loss\.skale: constant has no such option; did you mean scale\?"):
        losses.check_loss({"name": "constant", "skale": 2.0})


def test_a_loss_may_be_defined_again_but_not_take_the_name_of_another() -> None:
    register("constant")(Constant)
    register("constant")(Constant)
    with pytest.raises(DfmsdError, match="the name 'pkd' is taken by PKD; choose another"):
        register("pkd")(Constant)
    assert LOSSES["pkd"] is losses.PKD


@pytest.mark.parametrize("name", ["", "two words", "dotted.name", "1st", "a-b", " pkd", "größe", None])
def test_a_name_that_a_config_or_torch_could_not_use_is_refused(name: Any) -> None:
    before = dict(LOSSES)
    with pytest.raises(DfmsdError, match=r"losses\.register: .* is not a name; use a letter, then letters"):
        register(name)(Constant)
    assert before == LOSSES


def test_only_a_method_with_options_can_be_registered() -> None:
    with pytest.raises(DfmsdError, match=r"'l1' must be a subclass of dfmsd\.losses\.Method, got .*L1Loss"):
        register("l1")(torch.nn.L1Loss)  # type: ignore[type-var]
    with pytest.raises(DfmsdError, match=r"Bare\.Options must be a dataclass"):

        @register("bare")
        class Bare(Constant):
            Options = dict
