"""The search for layers that must stay in float32, on networks of two layers and on a student."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers.exports import need

from dfmsd.errors import DfmsdError
from dfmsd.evaluation.evaluate import Metrics
from dfmsd.exporting import int8
from dfmsd.exporting.images import open_images
from dfmsd.exporting.int8 import Judge, Quantized, rank_layers, write_int8
from dfmsd.exporting.quantization import Layer, Quantizer, find_layers
from dfmsd.exporting.verify import ExportedDetector

SIDE = 32


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A file of two layers; ``fine`` survives quantization, ``coarse`` has a weight that rounds to 0 beside another."""
    need("onnx")
    from onnx import TensorProto, helper, numpy_helper, save

    coarse = np.array([1000.0, 0.3, 0.0], np.float32).reshape(1, 3, 1, 1)  # the red channel of the images is 0
    weights = [("coarse.weight", coarse), ("decoder.model.fine.weight", np.full((1, 1, 1, 1), 0.5, np.float32))]
    nodes = [
        helper.make_node("Conv", ["images", "coarse.weight"], ["hidden"], name="a"),
        helper.make_node("Conv", ["hidden", "decoder.model.fine.weight"], ["half"], name="b"),
        helper.make_node("Conv", ["half", "decoder.model.fine.weight"], ["quarter"], name="c"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "network",
        [value("images", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [value("quarter", TensorProto.FLOAT, [1, 1, SIDE, SIDE])],
        [numpy_helper.from_array(array, name) for name, array in weights],
    )
    file = tmp_path / "network.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), file)
    return file


@pytest.fixture
def samples(tmp_path: Path) -> list[Path]:
    """Images without red, of which an ever larger part is green."""
    files = []
    for width in (8, 12, 16, 20):
        image = Image.new("RGB", (SIDE, SIDE))
        image.paste((0, 255, 0), (0, 0, width, SIDE))
        files.append(tmp_path / f"{width}.png")
        image.save(files[-1])
    return files


def load(file: Path) -> ExportedDetector:
    """Detect one box whose right side is where the network's output says: 0.3 / 4 of the mean green."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(batch: torch.Tensor) -> Any:
        (found,) = session.run(None, {"images": batch.numpy()})
        right = float(found.mean()) / 0.075 * SIDE  # the green part's own
        return torch.tensor([[[0.0, 0.0, right, SIDE]]]), torch.tensor([[0.9]]), torch.tensor([[0]])

    return ExportedDetector(run, ("thing",))


def judge(file: Path, samples: Sequence[Path]) -> Judge:
    return Judge(load(file), list(open_images(samples, SIDE)), None)


def test_layers_are_nodes_with_the_same_weights(network: Path) -> None:
    assert find_layers(network) == [("coarse", ("a",)), ("fine", ("b", "c"))]


def test_only_the_layers_named_are_quantized(network: Path, samples: list[Path], tmp_path: Path) -> None:
    quantizer = Quantizer(network, open_images(samples, SIDE))
    coarse, fine = quantizer.layers
    assert [quantized(quantizer, layers, tmp_path) for layers in ([], [fine], [coarse, fine])] == [
        set(),
        {"decoder.model.fine.weight"},
        {"coarse.weight", "decoder.model.fine.weight"},
    ]
    batches = list(open_images(samples, SIDE))
    assert rank_layers(quantizer, tmp_path / "x.onnx", load, batches) == [coarse, fine]


def quantized(quantizer: Quantizer, layers: list[Layer], folder: Path) -> set[str]:
    import onnx

    quantizer.write(folder / "x.onnx", layers)
    names = [tensor.name for tensor in onnx.load(folder / "x.onnx").graph.initializer]
    return {name.removesuffix("_quantized") for name in names if name.endswith(".weight_quantized")}


def test_the_layer_that_loses_most_stays_in_float32(network: Path, samples: list[Path], tmp_path: Path) -> None:
    found = write_int8(network, tmp_path / "x.onnx", load, judge(network, samples), samples, SIDE)
    assert found[2:] == (None, None, 2, ("coarse",), None)
    assert found.agreement == 1
    assert str(found).splitlines() == [
        "agreement with float32 100.0",
        "1 of 2 layers in int8; in float32: coarse",
    ]
    boxes = int8.detect_all(load(tmp_path / "x.onnx"), list(open_images(samples[:1], SIDE)))[0]["boxes"]
    assert float(boxes[0, 2]) == pytest.approx(8, abs=0.1)


def test_a_file_that_loses_too_much_is_refused(
    network: Path, samples: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "KEPT", ())
    with pytest.raises(DfmsdError, match=r"the file agrees with the model to \d+\.\d%, less than 80\.0%; no"):
        write_int8(network, tmp_path / "x.onnx", load, judge(network, samples), samples, SIDE)


def test_the_loss_is_that_of_ap_where_there_are_annotations() -> None:
    def metrics(ap: float) -> Metrics:
        return Metrics(AP=ap, AP50=ap, AP75=ap, APs=None, APm=None, APl=None, per_class={})

    found = Quantized(Path("x"), 0.5, metrics(0.47), metrics(0.465), 60, ("stem",))
    assert found.loss == pytest.approx(0.5)
    assert str(found).startswith("AP 47.0 in float32, 46.5 in int8; agreement with float32 50.0\n59 of 60 layers")
    worse = found._replace(after=metrics(0.447))
    assert int8._refusal(worse) == (
        "the file loses 2.3 AP (47.0 to 44.7) with 1 of 60 layers in float32, more than 1.0"
    )
    assert found._replace(before=None, after=None).loss == pytest.approx(2.5)
