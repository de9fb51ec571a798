"""ModuleDetector: any module as a detector, by paths and functions."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.testing import assert_close

from dfmsd.detectors import DetectorConfig, ModuleDetector, build_detector, load_detector, save_detector
from dfmsd.errors import DfmsdError
from dfmsd.types import Detections, LevelSpec, Target

PIXELS: dict[str, Any] = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.5)}
IMAGES = torch.rand(2, 3, 64, 32, generator=torch.Generator().manual_seed(3))
TARGETS: list[Target] = [
    {"boxes": torch.tensor([[0.0, 0.0, 8.0, 8.0]]), "labels": torch.tensor([1])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
]


class Neck(nn.Module):
    """Three maps of the image, of strides 8, 16 and 32, as a list, and as a dict of a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.outs = nn.ModuleList(nn.Conv2d(3, channels, 1) for channels in (4, 5, 6))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return [out(nn.functional.avg_pool2d(pixels, 2**n)) for n, out in enumerate(self.outs, start=3)]


class Named(nn.Module):
    def forward(self, maps: Sequence[Tensor]) -> dict[str, Any]:
        return {"maps": {"fine": maps[0], "coarse": maps[1]}, "tokens": maps[2].flatten(2).mT, "size": 3}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.neck, self.named, self.head = Neck(), Named(), nn.Conv2d(4, 2, 1)
        self.heads_run, self.skip_neck, self.seen = 0, False, torch.empty(0)
        self.head.register_forward_hook(self.count)

    def count(self, *_: object) -> None:
        self.heads_run += 1

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        self.seen = pixels.detach()
        maps = self.neck.forward(pixels) if self.skip_neck else self.neck(pixels)
        self.named(maps)
        scores = self.head(maps[0])
        return scores, self.head(scores.repeat(1, 2, 1, 1))


def loss(model: nn.Module, pixels: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
    scores, again = model(pixels)
    objects = sum(len(target["boxes"]) for target in targets)
    return {"cls": scores.square().mean(), "box": objects * again.square().mean()}


def decode(model: nn.Module, pixels: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
    scores = model(pixels)[0].flatten(1).sigmoid()[:, :2]
    boxes = torch.tensor([[-4.0, 2.0, 40.0, 90.0], [1.0, 1.0, 3.0, 3.0]])
    return [{"boxes": boxes, "scores": score, "labels": torch.tensor([0, 1])} for score in scores]


FINE = ("neck.0", "neck.1", "neck.2")


def detector(model: nn.Module, features: Sequence[str] = FINE, **options: Any) -> ModuleDetector:
    return ModuleDetector(model, features, options.pop("class_names", ("a", "b")), **{**PIXELS, **options})


def expected(net: Net, images: Tensor = IMAGES) -> list[Tensor]:
    mean, std = (torch.tensor(PIXELS[key]).view(3, 1, 1) for key in ("mean", "std"))
    return net.neck.forward((images - mean) / std)


@pytest.mark.parametrize(
    ("features", "levels"),
    [
        (FINE, [0, 1, 2]),
        (("neck.outs.0", "neck.outs.2"), [0, 2]),  # modules come first
        (("named.maps.fine", "named.maps.coarse", "neck.outs.2"), [0, 1, 2]),
        (("neck.1",), [1]),
    ],
)
def test_paths_lead_through_modules_and_into_their_outputs(features: Sequence[str], levels: Sequence[int]) -> None:
    net = Net()
    wrapped = detector(net, features)
    specs = [LevelSpec("p3", 4, 8), LevelSpec("p4", 5, 16), LevelSpec("p5", 6, 32)]
    assert list(wrapped.levels) == [specs[level] for level in levels]
    maps = expected(net)
    pyramid = wrapped.features(IMAGES)
    assert pyramid.keys() == {specs[level].name for level in levels}
    for level in levels:
        assert_close(pyramid[specs[level].name], maps[level])


def test_a_plain_number_indexes_the_models_output() -> None:
    net = Net()
    assert_close(detector(net.neck, ("0", "2")).features(IMAGES)["p5"], expected(net)[2])


def test_a_teacher_stops_after_the_last_map_and_a_student_runs_once() -> None:
    net = Net()
    wrapped = detector(net, loss=loss)
    net.heads_run = 0
    wrapped.features(IMAGES)
    assert net.heads_run == 0
    pyramid, losses = wrapped(IMAGES, TARGETS)
    assert net.heads_run == 2  # the head is run twice by each pass
    plain = loss(net, net.seen, TARGETS)
    assert_close(losses, plain)
    wanted = torch.autograd.grad(expected(net)[0].sum() + plain["cls"], net.neck.outs[0].weight)
    assert_close(torch.autograd.grad(pyramid["p3"].sum() + losses["cls"], net.neck.outs[0].weight), wanted)


def test_images_are_normalized_for_the_model() -> None:
    net = Net()
    images = torch.tensor([0.1, 0.5, 0.9]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    detector(net, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5), bgr=True).features(images)
    assert net.seen[0, :, 0, 0].tolist() == pytest.approx([(0.9 - 0.5) / 0.2, (0.5 - 0.4) / 0.25, (0.1 - 0.3) / 0.5])
    detector(net, mean=(0, 0, 0), std=(1 / 255,) * 3).features(images)
    assert net.seen[0, :, 0, 0].tolist() == pytest.approx([25.5, 127.5, 229.5])


def test_numpy_means_keep_images_float32() -> None:
    net = Net()
    detector(net, mean=np.array([0.5, 0.4, 0.3]), std=np.array([0.2, 0.25, 0.5])).features(IMAGES)
    assert net.seen.dtype == torch.float32


def test_run_decides_how_far_the_model_runs() -> None:
    net = Net()
    wrapped = detector(net, run=lambda model, pixels: model.neck(pixels))
    assert (net.heads_run, len(wrapped.levels)) == (0, 3)


def test_hooks_are_removed_even_if_the_model_fails() -> None:
    net = Net()
    wrapped = detector(net, loss=loss)
    wrapped(IMAGES, TARGETS)
    with pytest.raises(RuntimeError):
        wrapped.features(torch.rand(1, 5, 32, 32))
    assert not any(module._forward_hooks for name, module in net.named_modules() if name != "head")


def test_a_copy_observes_its_own_modules() -> None:
    wrapped = detector(Net())
    twin = copy.deepcopy(wrapped)
    nn.init.zeros_(twin.model.neck.outs[0].weight)
    nn.init.ones_(twin.model.neck.outs[0].bias)
    assert bool((twin.features(IMAGES)["p3"] == 1).all())
    assert not bool((wrapped.features(IMAGES)["p3"] == 1).all())


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (("nek.0",), r"'nek\.0' of Net is neither a module nor an item .*; nearest names: neck"),
        (("neck.outs.3",), r"'neck\.outs\.3' of Net did not run .*nearest names: neck\.outs\.\d"),
        (("neck.3",), r"'neck\.3' of Net is neither .*nearest names: neck\.\d, neck\.\d, neck\.\d"),
        (("named.maps.fin",), r"neither .*nearest names: named\.maps\.fine, named\.maps\.coarse"),
        (
            ("neck",),
            r"'neck' of Net is a list of 0, 1, 2, not a map N x C x H x W; nearest names: neck\.2, neck\.1, neck\.0",
        ),
        (("neck.outs",), r"'neck\.outs' of Net did not run in one forward pass, expected once; nearest names: neck\.o"),
        (("named.tokens",), r"is a tensor 1 x 64 x 6, not a map"),
        (("named.size",), r"is a int, not a map"),
        (("head",), r"'head' of Net ran more than once in one forward pass, expected once"),
        (("neck.1", "neck.0"), r"expected maps, finest first, got strides neck\.1 16, neck\.0 8"),
        ((), r"features: no path; name the modules"),
        ("neck.0", r"features: 'neck\.0' is a single text; pass a list of names, \['neck\.0'\]"),
        ((0, 1), r"features: 0 is not a name"),
        (("neck.0", "neck.0"), r"features: 'neck\.0' occurs 2 times"),
    ],
)
def test_wrong_paths_are_refused_with_the_nearest_names(features: Sequence[str], message: str) -> None:
    with pytest.raises(DfmsdError, match=message) as error:
        detector(Net(), features)
    assert "\n" not in str(error.value)


def test_channels_last_maps_and_fractional_strides_are_refused() -> None:
    class Last(nn.Conv2d):
        def forward(self, pixels: Tensor) -> Tensor:
            return super().forward(pixels).permute(0, 2, 3, 1)

    with pytest.raises(DfmsdError, match=r"is a tensor 1 x 32 x 32 x 7 for a side of 256, not N x C x H x W"):
        detector(nn.Sequential(Last(3, 7, 8, 8)), ("0",))
    with pytest.raises(DfmsdError, match=r"is a tensor 1 x 7 x 31 x 31 for a side of 256"):
        detector(nn.Sequential(nn.Conv2d(3, 7, 16, 8)), ("0",))


def test_every_pass_is_checked() -> None:
    net = Net()
    wrapped = detector(net, loss=loss)
    net.skip_neck = True
    for run in (lambda: wrapped.features(IMAGES), lambda: wrapped(IMAGES, TARGETS)):
        with pytest.raises(DfmsdError, match=r"'neck\.0' of Net did not run"):
            run()
    net.skip_neck = False
    net.neck.outs[1] = nn.Conv2d(3, 9, 1)
    with pytest.raises(DfmsdError, match=r"'neck\.1' of Net has 9 channels, but had 5 at first"):
        wrapped.features(IMAGES)
    double = detector(net, loss=lambda model, pixels, _: {"sum": model(pixels)[0].sum() + model(pixels)[0].sum()})
    with pytest.raises(DfmsdError, match="ran more than once"):
        double(IMAGES, TARGETS)


@pytest.mark.parametrize("pixels", [{"mean": (123.7, 116.3, 103.5)}, {"std": (58.4, 57.1, 57.4)}, {"mean": (0.5,)}])
def test_pixels_of_0_to_255_are_refused(pixels: dict[str, Any]) -> None:
    with pytest.raises(DfmsdError, match=r"divide values for pixels in 0\.\.255 by 255"):
        detector(Net(), **pixels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"module": Net}, r"module: Net is a class, not a module; pass an instance of it, such as Net\(\)"),
        ({"module": loss}, "module: loss is a function, not an nn.Module; pass the module, and functions as run"),
        ({"module": {"neck": 1}}, "module: expected an nn.Module, got a dict of neck"),
        ({"class_names": "car"}, r"class_names: 'car' is a single text; pass a list of names, \['car'\]"),
        ({"class_names": ("a", "b", "a")}, "class_names: 'a' occurs 2 times; name each once"),
        ({"class_names": {0: "a"}}, "class_names: 0 is not a name"),
        ({"class_names": ("a", "")}, "class_names: '' is not a name"),
        ({"class_names": 80}, "class_names: expected a list of names, got a int"),
        ({"decode": "nms"}, "decode: expected a function, got a str"),
    ],
)
def test_wrong_arguments_are_refused_before_the_model_runs(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DfmsdError, match=message) as error:
        ModuleDetector(**{"module": Net(), "features": FINE, **PIXELS, **arguments})
    assert "\n" not in str(error.value)


def test_missing_functions_are_refused_only_when_needed() -> None:
    wrapped = detector(Net())
    wrapped.features(IMAGES)
    with pytest.raises(DfmsdError, match=r"Net can only teach: .*loss=function\(model, pixels, targets\)"):
        wrapped(IMAGES, TARGETS)
    with pytest.raises(DfmsdError, match=r"Net cannot detect: .*decode=function\(model, pixels, sizes\)"):
        wrapped.detect(IMAGES, [(64, 32)] * 2)


def test_detections_are_clipped_and_best_first() -> None:
    net = Net()
    found = detector(net, decode=decode).detect(IMAGES, [(60, 30), (64, 32)])
    scores = decode(net, net.seen, [])
    for one, plain, (height, width) in zip(found, scores, [(60, 30), (64, 32)], strict=True):
        order = plain["scores"].argsort(descending=True)
        boxes = torch.tensor([[0.0, 2.0, width, height], [1.0, 1.0, 3.0, 3.0]])
        assert one["labels"].tolist() == order.tolist()
        assert_close(one["scores"], plain["scores"][order])
        assert_close(one["boxes"], boxes[order])


def _found(**changes: Any) -> Callable[..., list[Any]]:
    one = {"boxes": torch.zeros(2, 4), "scores": torch.rand(2), "labels": torch.tensor([0, 1])}
    return lambda *_: [{**one, **changes}] * 2


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ({"loss": lambda *_: torch.ones(())}, "expected named scalars, got a tensor without dimensions"),
        ({"loss": lambda *_: {}}, "expected named scalars, got a dict"),
        ({"loss": lambda *_: {"box": torch.ones(2)}}, "box is a tensor 2, expected a scalar"),
        ({"loss": lambda *_: {"box": [torch.ones(())]}}, "box is a list of 0, expected a scalar"),
        ({"decode": lambda *_: []}, "expected detections of 2 images, got 0"),
        ({"decode": lambda *_: None}, "expected a list with a dict of boxes, scores, labels for each image, got a No"),
        ({"decode": lambda *_: _found()()[0]}, "expected a list with a dict of .* got a dict of boxes, scores, labels"),
        ({"decode": lambda *_: [{"boxes": torch.zeros(0, 4)}] * 2}, "expected a dict of .* got a dict of boxes$"),
        ({"decode": lambda *_: [torch.zeros(0, 6)] * 2}, "expected a dict of .*, got a tensor 0 x 6"),
        ({"decode": _found(boxes=np.zeros((2, 4)))}, "expected tensors boxes K x 4, .*, got a ndarray, a tensor 2"),
        ({"decode": _found(boxes=torch.zeros(4))}, "boxes K x 4, .*, got a tensor 4, "),
        ({"decode": _found(scores=torch.tensor(0.5), labels=torch.tensor(0))}, "got a tensor 2 x 4, a tensor without"),
        ({"decode": _found(scores=torch.rand(2, 1), labels=torch.zeros(2, 1))}, "a tensor 2 x 1, a tensor 2 x 1"),
        ({"decode": _found(labels=torch.zeros(2))}, r"labels are torch\.float32, expected integers"),
        ({"decode": _found(labels=torch.tensor([1, 2]))}, r"labels 1\.\.2 for 2 class names; labels count from 0"),
        ({"decode": _found(scores=torch.rand(3))}, "boxes K x 4, scores K, labels K, got a tensor 2 x 4"),
    ],
)
def test_wrong_results_of_functions_are_refused(functions: dict[str, Any], message: str) -> None:
    def run(model: nn.Module, pixels: Tensor, targets: Sequence[Target]) -> Mapping[str, Tensor]:
        model(pixels)
        return functions["loss"](model, pixels, targets)  # type: ignore[no-any-return]

    wrapped = detector(Net(), loss=run if "loss" in functions else None, decode=functions.get("decode"))
    with pytest.raises(DfmsdError, match=message) as error:
        wrapped(IMAGES, TARGETS) if "loss" in functions else wrapped.detect(IMAGES, [(64, 32)] * 2)
    assert "\n" not in str(error.value)


class Plain(nn.Module):
    """A model that compiles to a single graph."""

    def __init__(self) -> None:
        super().__init__()
        self.neck, self.head = nn.Conv2d(3, 4, 8, 8), nn.Conv2d(4, 2, 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.head(self.neck(pixels))
        return scores, scores.repeat(1, 2, 1, 1)


@pytest.mark.slow
def test_a_compiled_module_is_observed_in_every_pass() -> None:
    """Detecting, which reads no maps, runs in between: its graph must not be reused for passes that do."""
    net = Plain()
    compiled: Any = torch.compile(net, backend="eager")
    plain = detector(net, ("neck",), loss=loss, decode=decode)
    wrapped = detector(compiled, ("neck",), loss=loss, decode=decode)
    assert wrapped.levels == plain.levels == (LevelSpec("p3", 4, 8),)
    for _ in range(2):
        for mode in (True, False):
            wrapped.train(mode)
            pyramid, losses = wrapped(IMAGES, TARGETS)
            wanted, plain_losses = plain(IMAGES, TARGETS)
            assert_close((pyramid, losses), (wanted, plain_losses))
            own = torch.autograd.grad(pyramid["p3"].sum() + losses["cls"], net.neck.weight)
            assert_close(own, torch.autograd.grad(wanted["p3"].sum() + plain_losses["cls"], net.neck.weight))
            assert len(wrapped.detect(IMAGES, [(64, 32)] * 2)) == 2
            with torch.no_grad():
                assert_close(wrapped.features(IMAGES), wanted)
        assert wrapped.permanent_hooks is not None
        assert not any(wrapped.permanent_hooks.calls.values())  # no map outlives its pass
    late: Any = torch.compile(Plain(), backend="eager")
    late(IMAGES)
    with pytest.raises(DfmsdError, match=r"did not run .*compiled module has to be wrapped before its first call"):
        detector(late, ("neck",)).features(IMAGES)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("wrap", [DistributedDataParallel, DataParallel])
def test_paths_refer_to_the_module_inside_data_parallelism(wrap: type[Any], tmp_path: Path) -> None:
    net = Net()
    wrapped = detector(wrap(net), loss=loss)
    assert_close(wrapped.features(IMAGES)["p4"], expected(net)[1])
    pyramid, losses = wrapped(IMAGES, TARGETS)
    (pyramid["p3"].sum() + losses["cls"]).backward()
    assert net.neck.outs[0].weight.grad is not None
    state = load_file(save_detector(wrapped, tmp_path))
    assert state.keys() == net.state_dict().keys()


def test_saved_weights_go_back_into_the_module(tmp_path: Path) -> None:
    net = Net()
    file = save_detector(detector(net, bgr=True), tmp_path / "run")
    module = Net()
    module.load_state_dict(load_file(file))
    assert all(torch.equal(value, module.state_dict()[key]) for key, value in net.state_dict().items())
    told = json.loads(file.with_suffix(".json").read_text())
    assert (told["features"], told["class_names"], told["bgr"]) == (list(FINE), ["a", "b"], True)
    assert told["image_mean"] == pytest.approx(PIXELS["mean"])
    for reference in (tmp_path / "run", file, file.with_suffix(".json")):
        with pytest.raises(DfmsdError) as error:
            load_detector(reference)
        assert f"module.load_state_dict(safetensors.torch.load_file('{file}'))" in str(error.value)
        assert f"{Net.__module__}.Net" in str(error.value)
        assert "\n" not in str(error.value)


def test_a_config_cannot_build_a_custom_module() -> None:
    config = detector(Net()).config
    assert config == DetectorConfig(f"python:{Net.__module__}.Net")
    with pytest.raises(DfmsdError, match=r"is a module of another program, which a config cannot build"):
        build_detector(config, ["a"])


def test_sizes_may_be_stated() -> None:
    features = ["neck.0", "neck.1", "neck.2"]
    assert [level.sizes for level in ModuleDetector(Net(), features, **PIXELS).levels] == [None, None, None]
    sizes = [(0.0, 32.0), (32.0, 64.0), (64.0, float("inf"))]
    assert [level.sizes for level in ModuleDetector(Net(), features, **PIXELS, sizes=sizes).levels] == sizes
    with pytest.raises(DfmsdError, match="sizes: expected a range for each of 3 levels, got 2"):
        ModuleDetector(Net(), features, **PIXELS, sizes=sizes[:2])
