"""Detectors of all families on the command line: level pairs and refusals."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors.torch import save_file
from tests.helpers.command import STUDENT, Command
from tests.helpers.fixtures import TINY_BACKBONE
from tests.helpers.tiny_transformers import NEEDED, needs_transformers, save_model

from dfmsd.detectors import DetectorConfig, build_detector, save_detector

CLASSES = ("square", "disc")


@pytest.fixture
def configure(dfmsd: Command, tiny_root: Path) -> Callable[[str, dict[str, Any]], str]:
    """Write a config of one teacher and one student."""

    def configure(teacher: str, student: dict[str, Any]) -> str:
        content = {
            "data": {"root": str(tiny_root), "image_size": 64, "batch_size": 4},
            "student": student,
            "stages": [{"teacher": teacher, "epochs": 1}],
            "out": "run",
        }
        return dfmsd.write("distill.yaml", content)

    return configure


def own(arch: str) -> Callable[[Path], str]:
    def save(folder: Path) -> str:
        save_detector(build_detector(DetectorConfig(**{**STUDENT, "arch": arch}), CLASSES), folder / arch)  # type: ignore[arg-type]
        return arch

    return save


def backbone(folder: Path) -> str:
    save_file(timm.create_model("test_resnet").state_dict(), folder / "resnet.safetensors")
    return "timm:test_resnet?weights=resnet.safetensors"


def hugging_face(model_type: str) -> Callable[[Path], str]:
    def save(folder: Path) -> str:
        save_model(model_type, folder / model_type)
        return f"hf:{model_type}"

    return save


def equal(*strides: int) -> dict[int, int]:
    return dict(zip(strides, strides, strict=True))


def by_name(arch: str) -> Callable[[Path], dict[str, Any]]:
    return lambda _: {**STUDENT, "arch": arch}


@pytest.mark.parametrize(
    ("teacher", "student", "strides"),
    [
        (own("ssdlite"), by_name("fcos"), {8: 16, 16: 32, 32: 64, 64: 256, 128: 512}),
        (own("faster_rcnn"), by_name("gfl"), {8: 4, 16: 8, 32: 16, 64: 32, 128: 64}),
        (backbone, by_name("ssdlite"), equal(16, 32)),
        pytest.param(
            hugging_face("deformable_detr"), by_name("retinanet"), {8: 8, 16: 16, 32: 32, 64: 64}, marks=NEEDED
        ),
        pytest.param(own("fcos"), lambda f: {"arch": hugging_face("d_fine")(f)}, {8: 8, 16: 16, 32: 32}, marks=NEEDED),
    ],
    ids=["ssdlite-fcos", "faster_rcnn-gfl", "timm-ssdlite", "deformable_detr-retinanet", "fcos-d_fine"],
)
def test_check_prints_the_level_pairs(
    dfmsd: Command, configure: Callable[..., str], teacher: Any, student: Any, strides: dict[int, int]
) -> None:
    config = configure(teacher(dfmsd.folder), student(dfmsd.folder))
    status, _, err = dfmsd("check", "--config", config, "--allow-weak-teacher", "--check-images", 1)
    assert status == 0
    (line,) = re.findall(r"stage 1: (.*) parameters: student", " ".join(err.split()))
    pairs = re.findall(r"p\d \(/(\d+), \d+\) <- p\d \(/(\d+), \d+\)", line)
    assert {int(student): int(teacher) for student, teacher in pairs} == strides


def test_weights_of_another_architecture_are_refused(
    dfmsd: Command, configure: Callable[..., str], tiny_teachers: tuple[str, str]
) -> None:
    first, second = tiny_teachers
    shutil.copytree(first, dfmsd.folder / "teacher")
    shutil.copy(Path(second) / "student.safetensors", dfmsd.folder / "teacher")
    error = dfmsd.refusal("distill", "--config", configure("teacher", STUDENT))
    assert "teacher/student.safetensors does not fit the model: size mismatch for " in error

    backbone(dfmsd.folder)
    error = dfmsd.refusal("distill", "--config", configure("timm:test_vit?weights=resnet.safetensors", STUDENT))
    assert "timm:test_vit?weights=resnet.safetensors does not fit the backbone: missing" in error
    error = dfmsd.refusal("distill", "--config", configure(first, {**STUDENT, "pretrained": "resnet.safetensors"}))
    assert f"resnet.safetensors for {TINY_BACKBONE} does not fit the backbone" in error


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_a_missing_extra_is_named(
    dfmsd: Command,
    configure: Callable[..., str],
    tiny_teachers: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    side: str,
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    pair = ("hf:a/b", STUDENT) if side == "teacher" else (tiny_teachers[0], {"arch": "hf:a/b"})
    error = dfmsd.refusal("distill", "--config", configure(*pair))
    assert re.search(r"hf:a/b needs transformers \(.*\): pip install 'dfmsd\[transformers\]'", error)


@needs_transformers
@pytest.mark.transformers
@pytest.mark.parametrize("side", ["teacher", "student"])
def test_an_unreachable_hub_is_reported_with_a_remedy(
    dfmsd: Command,
    configure: Callable[..., str],
    tiny_teachers: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    side: str,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    pair = ("hf:nobody/nothing", STUDENT) if side == "teacher" else (tiny_teachers[0], {"arch": "hf:nobody/nothing"})
    error = dfmsd.refusal("distill", "--config", configure(*pair))
    assert "there is no folder nobody/nothing, and it cannot be loaded from the Hugging Face hub" in error
    assert "hf download nobody/nothing" in error


def test_unreachable_timm_weights_are_reported_with_a_remedy(
    dfmsd: Command, configure: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    create = timm.create_model

    def offline(*arguments: Any, **options: Any) -> Any:
        if options.get("pretrained"):
            raise OSError("no route to host")
        return create(*arguments, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    error = dfmsd.refusal("distill", "--config", configure("timm:test_resnet", STUDENT))
    assert re.search(r"ImageNet weights are unavailable .*timm:test_resnet\?weights=FILE", error)
