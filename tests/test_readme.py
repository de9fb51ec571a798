"""The Python of the README and of docs/add-*.md runs; the README's config and all shipped configs parse."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.helpers.fixtures import TINY_BACKBONE

import dfmsd

README = Path(__file__).resolve().parents[1] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_plain_loop_trains_student_and_layers() -> None:
    loop = next(block for block in blocks("python") if "loader" in block)
    assert len(loop.strip().splitlines()) <= 17
    sizes = [32, 16, 8, 4, 2]
    student_convs = torch.nn.ModuleList(torch.nn.Conv2d(3, 64, 1) for _ in sizes)

    class Student(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = student_convs

        def forward(self, images: torch.Tensor, targets: object) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
            pooled = [torch.nn.functional.adaptive_avg_pool2d(images, size) for size in sizes]
            pyramid = {f"p{i}": conv(p) for i, conv, p in zip(range(3, 8), self.convs, pooled, strict=True)}
            return pyramid, pyramid["p7"].square().mean()

    def teacher(images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {f"p{i}": torch.randn(len(images), 256, 256 // 2**i, 256 // 2**i) for i in range(2, 7)}

    boxes = [torch.tensor([[10.0, 10.0, 90.0, 120.0]]), torch.zeros(0, 4)]
    loader = [(torch.rand(2, 3, 256, 256), boxes, None)] * 2
    student = Student()
    before = [p.clone() for p in student.parameters()]
    names = {"student": student, "teacher": teacher, "loader": loader}
    exec(compile(loop, str(README), "exec"), names)
    layers = list(names["criterion"].parameters())
    assert torch.isfinite(names["loss"])
    assert all(p.grad is not None for p in layers)
    moved = [not torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True)]
    assert all(moved)


def test_python_example_distills(tiny_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    code = next(block for block in blocks("python") if "dfmsd.distill" in block)
    assert len(code.strip().splitlines()) <= 8
    monkeypatch.chdir(tmp_path)
    (tmp_path / "path" / "to").mkdir(parents=True)
    tiny_coco.rename(tmp_path / "path" / "to" / "coco")
    config = dfmsd.DetectorConfig(backbone=TINY_BACKBONE, fpn_channels=16, head_convs=1)
    dfmsd.save_detector(dfmsd.build_detector(config, ("square", "disc")), tmp_path / "runs" / "teacher")
    # an untrained teacher and one epoch at a small size: only that the lines run is tested
    code = code.replace("epochs=12", "epochs=1, allow_weak_teacher=True")
    code = code.replace('data="path/to/coco"', 'data=dfmsd.DataConfig("path/to/coco", image_size=64, batch_size=4)')
    Image.new("RGB", (64, 48)).save(tmp_path / "image.jpg")
    names: dict[str, Any] = {}
    exec(compile(code, str(README), "exec"), names)
    assert (tmp_path / "runs" / "student" / "student.safetensors").exists()
    assert names["prediction"].image_size == (48, 64)
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{names['result'].metrics['AP']} tensor(")


@mock.patch.dict(dfmsd.losses.LOSSES)
def test_documented_custom_loss_works() -> None:
    text = (README.parent / "docs" / "add-a-loss.md").read_text(encoding="utf-8")
    exec(compile(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[0], "add-a-loss.md", "exec"), {})
    assert "feature_l1" in dfmsd.losses.LOSSES
    levels = [dfmsd.LevelSpec("p3", 2, 8), dfmsd.LevelSpec("p4", 2, 16)]
    criterion = dfmsd.losses.build("feature_l1", levels, levels, scale=2.0, weight=0.5)
    ones, zeros = ({level.name: torch.full((1, 2, 4, 4), v) for level in levels} for v in (1.0, 0.0))
    terms = criterion(ones, zeros)
    assert {name: float(value) for name, value in terms.items()} == {"l1/p3": 1.0, "l1/p4": 1.0}


def test_documented_custom_detectors_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (README.parent / "docs" / "add-a-detector.md").read_text(encoding="utf-8")
    wrap, restore, backbone = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)

    class Output:
        def losses(self, targets: list[dfmsd.Target]) -> dict[str, torch.Tensor]:
            return {"own": torch.tensor(float(len(targets)))}

        def detections(self, sizes: list[tuple[int, int]]) -> list[dfmsd.Detections]:
            one = {"boxes": torch.ones(1, 4), "scores": torch.ones(1), "labels": torch.zeros(1, dtype=torch.int64)}
            return [one for _ in sizes]  # type: ignore[misc]

    class Neck(torch.nn.Conv2d):
        def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
            return [torch.nn.functional.avg_pool2d(super(Neck, self).forward(pixels), 2**n) for n in (3, 4, 5)]

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.neck = Neck(3, 4, 1)

        def forward(self, pixels: torch.Tensor) -> Output:
            self.neck(pixels)
            return Output()

    monkeypatch.chdir(tmp_path)
    names = {"model": Model(), "class_names": ("a", "b"), "dfmsd": dfmsd}
    exec(compile(wrap, "add-a-detector.md", "exec"), names)
    student = names["student"]
    pyramid, losses = student(torch.rand(2, 3, 64, 64), [{}, {}])
    assert ([value.shape[-1] for value in pyramid.values()], float(losses["own"])) == ([8, 4, 2], 2.0)
    assert len(student.detect(torch.rand(2, 3, 64, 64), [(64, 64)] * 2)) == 2
    dfmsd.save_detector(student, tmp_path / "runs" / "student")
    weight = names["model"].neck.weight.detach().clone()
    torch.nn.init.zeros_(names["model"].neck.weight)
    exec(compile(restore, "add-a-detector.md", "exec"), names)
    assert torch.equal(names["model"].neck.weight, weight)
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "vit.safetensors")
    exec(compile(backbone, "add-a-detector.md", "exec"), names)
    assert [level.stride for level in names["teacher"].levels] == [8, 16, 32]


@pytest.mark.parametrize("block", blocks("yaml"))
def test_readme_config_parses(block: str, tmp_path: Path) -> None:
    from dfmsd.engine.config import DistillConfig
    from dfmsd.engine.configfile import read_config

    path = tmp_path / "config.yaml"
    path.write_text(block)
    assert [stage.epochs for stage in read_config(DistillConfig, path).stages] == [12]


@pytest.mark.parametrize("path", sorted((README.parent / "configs").rglob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configs_parse_and_are_short(path: Path) -> None:
    from dfmsd.comparison.config import CompareConfig
    from dfmsd.engine.config import DistillConfig, TrainConfig
    from dfmsd.engine.configfile import read_config

    text = path.read_text()
    assert len(text.splitlines()) <= 25
    kinds = {"pairs": CompareConfig, "stages": DistillConfig, "model": TrainConfig}
    kind = next(kind for key, kind in kinds.items() if f"\n{key}:" in text)
    assert read_config(kind, path).epochs > 0
