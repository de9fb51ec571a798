from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval import COCO, COCOeval_faster
from PIL import Image
from tests.helpers.prepared import FakeDetector
from torch import Tensor, nn

from dfmsd.data import Augmentation, CocoDataModule, DataConfig, DetectionDataset, DetectionSplit, collate, open_split
from dfmsd.errors import DfmsdError
from dfmsd.evaluation.evaluate import coco_metrics, coco_results, detect, evaluate, match_classes
from dfmsd.types import Detections


def found(boxes: Any, labels: Any, scores: Any = None) -> Detections:
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    scores = torch.ones(len(boxes)) if scores is None else torch.as_tensor(scores, dtype=torch.float32)
    return Detections(boxes=boxes, scores=scores, labels=torch.as_tensor(labels, dtype=torch.int64))


NOTHING = found([], [])


def perfect(dataset: DetectionDataset) -> list[Detections]:
    return [found(**dataset[index].target) for index in range(len(dataset))]


@pytest.fixture
def val(tiny_coco: Path) -> DetectionDataset:
    return DetectionDataset(open_split(tiny_coco, "val"), 64)


def one_class(root: Path, boxes: Sequence[Sequence[float]], images: int = 1, **extra: object) -> DetectionSplit:
    """Write images of 300 x 200 pixels; the first has the boxes (xywh)."""
    (root / "val").mkdir(parents=True)
    (root / "annotations").mkdir()
    for i in range(images):
        Image.fromarray(np.zeros((200, 300, 3), dtype=np.uint8)).save(root / "val" / f"{i}.png")
    content = {
        "images": [{"id": 10 + i, "file_name": f"{i}.png", "width": 300, "height": 200} for i in range(images)],
        "categories": [{"id": 5, "name": "thing"}],
        "annotations": [
            {"id": i, "image_id": 10, "category_id": 5, "bbox": list(box), **(extra if i == 0 else {})}
            for i, box in enumerate(boxes)
        ],
    }
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return open_split(root, "val")


def result(bbox: Sequence[float], score: float, image_id: int = 1) -> Any:
    return {"image_id": image_id, "category_id": 5, "bbox": list(bbox), "score": score}


A, B, ELSEWHERE = (10, 10, 100, 100), (150, 50, 100, 100), (10, 150, 40, 40)


def test_perfect_detections_have_ap_1(val: DetectionDataset) -> None:
    metrics = evaluate(FakeDetector(val.coco.class_names, perfect(val)), val, batch_size=3)
    assert [metrics[name] for name in ("AP", "AP50", "AP75")] == pytest.approx([1.0] * 3)
    assert metrics["per_class"] == pytest.approx({"square": 1.0, "disc": 1.0})
    assert metrics["APs"] == pytest.approx(1.0)
    assert metrics["APl"] is None  # no object of the tiny set is larger than 96 x 96 pixels


@pytest.mark.parametrize("split", ["train", "val"])  # the last train image has no box
def test_loader_and_data_set_have_the_same_metrics(tiny_coco: Path, split: str) -> None:
    data = CocoDataModule(DataConfig(root=str(tiny_coco), image_size=96, batch_size=3, pad="batch"))
    loader, names = data.val_dataloader(), data.class_names
    dataset = DetectionDataset(open_split(tiny_coco, split), 96)
    if split == "val":
        assert evaluate(FakeDetector(names, perfect(data.val)), loader) == evaluate(
            FakeDetector(names, perfect(dataset)), dataset
        )
    assert evaluate(FakeDetector(names, perfect(dataset)), dataset)["AP"] == pytest.approx(1.0)


def test_a_false_positive_between_two_hits_has_the_ap_worked_out_by_hand(tmp_path: Path) -> None:
    metrics = coco_metrics(one_class(tmp_path, [A, B]), [result(A, 0.9), result(ELSEWHERE, 0.8), result(B, 0.7)])
    # precision 1 up to recall 0.5 (51 of the 101 recall points), 2/3 above
    expected = (51 + 50 * 2 / 3) / 101
    assert [metrics["AP"], metrics["AP50"], metrics["AP75"]] == pytest.approx([expected] * 3)
    assert metrics["APm"] is None
    assert metrics["APl"] == pytest.approx(1.0)  # a medium miss is not held against the large objects
    assert metrics["per_class"] == {"thing": pytest.approx(expected)}


def test_a_loose_box_counts_up_to_its_iou(tmp_path: Path) -> None:
    loose = (10, 10, 100, 62)  # IoU 0.62: the thresholds 0.5, 0.55, 0.6 of ten
    metrics = coco_metrics(one_class(tmp_path, [A]), [result(loose, 0.9)])
    assert metrics["AP"] == pytest.approx(0.3)
    assert (metrics["AP50"], metrics["AP75"]) == pytest.approx((1.0, 0.0))


def test_detections_in_a_crowd_are_neither_hits_nor_false_positives(tmp_path: Path) -> None:
    inside = [result((20, 20, 30, 30), 0.99), result((60, 60, 30, 30), 0.98)]
    crowded = one_class(tmp_path / "crowd", [A, B], iscrowd=1)
    assert coco_metrics(crowded, [*inside, result(B, 0.5)])["AP"] == pytest.approx(1.0)
    assert coco_metrics(crowded, [result(B, 0.5)])["AP"] == pytest.approx(1.0)
    plain = one_class(tmp_path / "plain", [A, B])
    assert coco_metrics(plain, [*inside, result(B, 0.5)])["AP"] == pytest.approx(51 / 101 / 3)


def test_a_detection_in_an_image_without_boxes_is_a_false_positive(tmp_path: Path) -> None:
    coco = one_class(tmp_path, [A], images=2)
    assert coco_metrics(coco, [result(A, 0.9)])["AP"] == pytest.approx(1.0)
    assert coco_metrics(coco, [result(A, 0.8), result(B, 0.9, image_id=2)])["AP"] == pytest.approx(0.5)


def test_no_detections_have_ap_0_and_no_objects_have_none(val: DetectionDataset, tmp_path: Path) -> None:
    metrics = evaluate(FakeDetector(val.coco.class_names, [NOTHING] * 4), val)
    assert metrics["AP"] == 0.0
    assert metrics["per_class"] == {"square": 0.0, "disc": 0.0}
    empty = coco_metrics(one_class(tmp_path, []), [result(A, 0.9)])
    assert empty["AP"] is None
    assert empty["per_class"] == {"thing": None}


def test_classes_are_matched_by_name(val: DetectionDataset) -> None:
    names = ("disc", "other", "square")  # another order, and one class more
    to_own = torch.tensor([2, 0])
    answers = [found(d["boxes"], to_own[d["labels"]]) for d in perfect(val)]
    noise = found([[0, 0, 60, 60]], [1], [1.0])
    answers = [found(torch.cat([noise["boxes"], d["boxes"]]), [1, *d["labels"].tolist()]) for d in answers]
    assert evaluate(FakeDetector(names, answers), val)["AP"] == pytest.approx(1.0)
    assert match_classes(names, val.coco) == {0: 3, 2: 1}
    assert match_classes(("Disc", "other", "SQUARE"), val.coco) == {0: 3, 2: 1}


def test_a_class_that_the_detector_lacks_has_ap_0(val: DetectionDataset) -> None:
    answers = [found(d["boxes"][d["labels"] == 1], [0] * int((d["labels"] == 1).sum())) for d in perfect(val)]
    metrics = evaluate(FakeDetector(("disc",), answers), val)
    assert metrics["per_class"] == pytest.approx({"square": 0.0, "disc": 1.0})
    assert metrics["AP"] == pytest.approx(0.5)


def test_no_class_in_common_is_refused_with_both_lists(val: DetectionDataset) -> None:
    with pytest.raises(DfmsdError, match=r"\[square, disc\] .*\[cat, dog\]"):
        evaluate(FakeDetector(("cat", "dog"), []), val)


@pytest.mark.parametrize("image_size", [64, 96, 160])
def test_boxes_map_back_to_original_pixels(tiny_coco: Path, image_size: int) -> None:
    coco = open_split(tiny_coco, "val")
    dataset = DetectionDataset(coco, image_size)
    batch = collate([dataset[i] for i in range(len(dataset))], image_size)
    results = coco_results([found(**target) for target in batch.targets], batch, {0: 1, 1: 3})
    assert json.loads(json.dumps(results)) == results
    truth = coco.ground_truth["annotations"]
    assert len(results) == len(truth)
    for given, expected in zip(results, truth, strict=True):
        assert (given["image_id"], given["category_id"]) == (expected["image_id"], expected["category_id"])
        assert given["bbox"] == pytest.approx(expected["bbox"], abs=1e-3)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_limit_uses_the_first_images_only(val: DetectionDataset, batch_size: int) -> None:
    answers = [*perfect(val)[:3], NOTHING]
    detector = FakeDetector(val.coco.class_names, answers)
    assert evaluate(detector, val, limit=3, batch_size=batch_size)["AP"] == pytest.approx(1.0)
    assert len(detector.answers) == 1
    assert evaluate(FakeDetector(val.coco.class_names, answers), val, limit=99)["AP"] != 1.0


def test_limit_below_1_is_refused(val: DetectionDataset) -> None:
    with pytest.raises(DfmsdError, match="limit must be at least 1 image, got 0"):
        evaluate(FakeDetector(val.coco.class_names, []), val, limit=0)


def test_augmented_data_are_refused(val: DetectionDataset) -> None:
    with pytest.raises(DfmsdError, match="without augmentation"):
        evaluate(FakeDetector(val.coco.class_names, []), DetectionDataset(val.coco, 64, Augmentation(64)))


def test_the_detector_runs_in_eval_mode_without_gradients_and_is_restored(val: DetectionDataset) -> None:
    detector = FakeDetector(val.coco.class_names, perfect(val))
    detector.train()
    detector.norm.eval()  # a frozen part of a detector in training
    evaluate(detector, val)
    assert set(detector.modes) == {(False, False)}
    assert detector.training
    assert not detector.norm.training


def test_training_flags_are_restored_after_an_error(val: DetectionDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = FakeDetector(val.coco.class_names, [])

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(detector, "detect", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        evaluate(detector, val)
    assert detector.training
    assert detector.norm.training


def test_boxes_without_area_are_dropped(val: DetectionDataset) -> None:
    flat = found([[0, 0, 9, 9], [0, 5, 9, 5], [7, 0, 7, 9]], [1, 1, 0], [0.9, 0.8, 0.7])
    (detections,) = detect(FakeDetector(val.coco.class_names, [flat]), collate([val[0]], 64))
    assert [value.tolist() for value in detections.values()] == [[[0, 0, 9, 9]], [pytest.approx(0.9)], [1]]


def test_amp_reaches_the_detector(val: DetectionDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = FakeDetector(val.coco.class_names, [])
    seen: list[torch.dtype] = []

    def product(images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        seen.append((images[0, 0] @ images[0, 0].T).dtype)
        return [NOTHING] * len(sizes)

    monkeypatch.setattr(detector, "detect", product)
    batch = collate([val[0]], 64)
    detect(detector, batch)
    detect(detector, batch, torch.bfloat16)
    assert seen == [torch.float32, torch.bfloat16]


def test_eval_mode_is_entered_once_and_not_if_it_is_set_already(
    val: DetectionDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[FakeDetector] = []
    monkeypatch.setattr(FakeDetector, "eval", lambda self: entered.append(self) or nn.Module.eval(self))
    detector = FakeDetector(val.coco.class_names, perfect(val) * 2)
    evaluate(detector, val, batch_size=1)
    assert len(entered) == 1
    detector.eval()
    entered.clear()
    evaluate(detector, val, batch_size=1)
    assert not entered
    assert not detector.training


class _WithoutFloat64(Tensor):
    """A tensor as on an MPS device, which has no float64; `cpu` moves it off."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.double:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        result = super().__torch_function__(func, types, args, kwargs or {})
        return result.as_subclass(Tensor) if func is Tensor.cpu else result


def test_detections_on_a_device_without_float64_are_moved_off_it_first(val: DetectionDataset) -> None:
    plain = perfect(val)[0]
    on_mps = Detections({**plain, "boxes": plain["boxes"].as_subclass(_WithoutFloat64)})
    batch, category_of = collate([val[0]], 64), match_classes(val.coco.class_names, val.coco)
    assert coco_results([on_mps], batch, category_of) == coco_results([plain], batch, category_of)


def test_metrics_equal_a_plain_coco_evaluation(tiny_coco: Path) -> None:
    coco = open_split(tiny_coco, "train")
    rng = np.random.default_rng(0)
    results: list[Any] = [
        {
            "image_id": truth["image_id"],
            "category_id": int(rng.choice(coco.category_ids)),
            "bbox": (np.array(truth["bbox"]) + rng.normal(0, 2, 4)).tolist(),
            "score": float(rng.random()),
        }
        for truth in coco.ground_truth["annotations"] * 3
    ]
    looked_at = [record.id for record in coco.records[:6]]
    results = [result for result in results if result["image_id"] in looked_at]
    truth = COCO(copy.deepcopy(coco.ground_truth))
    reference = COCOeval_faster(truth, truth.loadRes(copy.deepcopy(results)), iouType="bbox")
    reference.params.imgIds = looked_at
    reference.run()
    metrics = coco_metrics(coco, results, looked_at)
    found = [metrics[name] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")]
    assert found == [None if value < 0 else value for value in reference.stats[:6]]
    assert 0 < metrics["AP"] < 1


def test_evaluation_has_no_side_effects(val: DetectionDataset, capsys: pytest.CaptureFixture[str]) -> None:
    answers, state = perfect(val), torch.get_rng_state()
    truth = json.dumps(val.coco.ground_truth)
    first = evaluate(FakeDetector(val.coco.class_names, answers), val, progress=True)
    assert capsys.readouterr().out == ""
    assert torch.equal(state, torch.get_rng_state())
    assert json.dumps(val.coco.ground_truth) == truth
    assert evaluate(FakeDetector(val.coco.class_names, answers), val) == first
    results = [result((0, 0, 9, 9), 0.5, image_id=1)]
    before = json.dumps(results)
    coco_metrics(val.coco, results)
    assert json.dumps(results) == before
