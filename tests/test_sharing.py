from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dfmsd.cli import main as cli
from dfmsd.detectors import load_detector
from dfmsd.distillation.stages import StageConfig
from dfmsd.errors import DfmsdError
from dfmsd.runfolder import RunFolder
from dfmsd.sharing import CARD, FILES, escaped, share

hub = pytest.importorskip("huggingface_hub")
MakeRun = Callable[..., Path]
STRANGE = {"square": "a|b *c* <script>", "disc": "[x](y) `z` $d$"}


@pytest.fixture(scope="module")
def run(finished_run: MakeRun) -> Path:
    """A finished run; tests must not change it."""
    return finished_run("student")


def tables(card: Any) -> list[list[str]]:
    """Return the cells of all table rows, unparsed."""
    lines = [line for line in card.text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_shared_folder_detects_like_the_run(run: Path, tmp_path: Path) -> None:
    assert share(run, tmp_path / "out") == tmp_path / "out" / CARD
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*FILES, CARD}
    images, sizes = torch.rand(2, 3, 64, 64), [(64, 64), (48, 64)]
    with torch.no_grad():
        mine, theirs = (load_detector(folder).detect(images, sizes) for folder in (run, tmp_path / "out"))
    assert sum(len(found["scores"]) for found in mine) > 0
    for one, other in zip(mine, theirs, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in ("boxes", "scores", "labels"))
    assert RunFolder(tmp_path / "out").image_size() == 64


def test_card_has_the_numbers_of_the_run(run: Path, finished_run: MakeRun, tmp_path: Path) -> None:
    baseline = finished_run("baseline", no_distill=True)
    worse = {"AP": 0.125, "AP50": 0.375, "AP75": 0.0625, "per_class": {"square": 0.25, "disc": 0.0}}
    (baseline / "metrics.json").write_text(json.dumps(worse))
    (baseline / "environment.json").write_text(json.dumps({"parameters": {"student": 1234}}))
    options = {"dataset": "Shapes", "license": "apache-2.0", "baseline": baseline}
    card = hub.ModelCard.load(share(run, tmp_path / "out", **options))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    results = {result.metric_type: result for result in card.data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == {"AP": 0.25, "AP50": 0.5}
    assert all(results[name].metric_value == metrics[name] for name in results)  # AP75 is unknown
    assert {result.dataset_name for result in results.values()} == {"Shapes"}
    about = card.data.to_dict()
    assert about["license"] == "apache-2.0"
    assert (about["library_name"], about["pipeline_tag"]) == ("dfmsd", "object-detection")
    assert about["tags"] == ["dfmsd", "knowledge-distillation"]
    count = f"{sum(parameter.numel() for parameter in load_detector(run).parameters()):,}"
    rows = tables(card)
    assert ["student", "25.0", "50.0", "-", count] in rows
    assert ["baseline", "12.5", "37.5", "6.2", "1,234"] in rows
    assert ["teacher fcos", "-", "-", "-", "-"] in rows  # a detector without metrics
    assert ["square", "50.0"] in rows
    assert ["disc", "12.5"] in rows
    assert ["classes", "square, disc"] in rows
    assert ["parameters", count] in rows
    assert ["input", "RGB in 0..1, longer side 64 pixels"] in rows
    assert "\n\n| class | AP |" in card.text  # a table needs an empty line before it
    assert str(tmp_path) not in str(card)


def test_card_lists_the_numbers_of_a_teacher_run(finished_run: MakeRun, tmp_path: Path) -> None:
    teacher = finished_run("big", no_distill=True)
    (teacher / "metrics.json").write_text(json.dumps({"AP": 0.75, "AP50": 1.0, "AP75": 0.875}))
    (teacher / "environment.json").write_text(json.dumps({"parameters": {"student": 9876}}))
    run = finished_run("small", stages=[StageConfig(epochs=1, teacher=str(teacher))])
    card = hub.ModelCard.load(share(run, tmp_path / "out"))
    assert ["teacher big", "75.0", "100.0", "87.5", "9,876"] in tables(card)
    assert "The numbers of a teacher come from its own run" in card.text


def test_the_numbers_of_a_teacher_on_other_images_are_not_listed(finished_run: MakeRun, tmp_path: Path) -> None:
    teacher = finished_run("big", no_distill=True)
    config = (teacher / "config.yaml").read_text()
    (teacher / "config.yaml").write_text(config.replace("holdout: 0.0", "holdout: 0.25"))
    (teacher / "metrics.json").write_text(json.dumps({"AP": 0.75, "AP50": 1.0, "AP75": 0.875}))
    run = finished_run("small", stages=[StageConfig(epochs=1, teacher=str(teacher))])
    (row,) = (row for row in tables(hub.ModelCard.load(share(run, tmp_path / "out"))) if row[0] == "teacher big")
    assert row[1:4] == ["-", "-", "-"]


def test_missing_information_is_not_stated(finished_run: MakeRun, tmp_path: Path) -> None:
    run = finished_run("alone", no_distill=True)
    card = hub.ModelCard.load(share(run, tmp_path / "out"))
    assert "license" not in card.data.to_dict()
    assert ["license", "not stated"] in tables(card)
    assert ["training data", "tiny\\_coco"] in tables(card)
    assert "knowledge-distillation" not in card.data.tags
    assert "eacher" not in card.text


def test_a_data_set_without_a_name_has_to_be_named(run: Path, tmp_path: Path) -> None:
    unnamed = shutil.copytree(run, tmp_path / "unnamed")
    content = yaml.safe_load((unnamed / "config.yaml").read_text())
    content["data"]["root"] = "."
    (unnamed / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(DfmsdError, match=r"`dataset`: required because the run's data.root, '\.', is no name of"):
        share(unnamed, tmp_path / "out")
    assert share(unnamed, tmp_path / "out", dataset="Shapes").is_file()


def test_markup_in_class_names_is_escaped(run: Path, tmp_path: Path) -> None:
    strange = shutil.copytree(run, tmp_path / "run")
    for name, key in (("student.json", "class_names"), ("metrics.json", "per_class")):
        content = json.loads((strange / name).read_text())
        changed = [STRANGE[one] for one in content[key]]
        content[key] = changed if key == "class_names" else dict(zip(changed, content[key].values(), strict=True))
        (strange / name).write_text(json.dumps(content))
    card = hub.ModelCard.load(share(strange, tmp_path / "out", name="--- a: b", dataset="x: [1"))
    assert "<script>" not in card.text
    rows = tables(card)
    assert ["a\\|b \\*c\\* &lt;script&gt;", "50.0"] in rows
    assert ["\\[x\\](y) \\`z\\` \\$d\\$", "12.5"] in rows
    assert card.data.eval_results[0].dataset_name == "x: [1"
    assert card.data.model_name == "--- a: b"


@pytest.mark.parametrize(
    ("text", "expected"), [("a_b", "a\\_b"), ("a\n# b", "a \\# b"), ("<b>&", "&lt;b&gt;&amp;"), ("\\", "\\\\")]
)
def test_escapes(text: str, expected: str) -> None:
    assert escaped(text) == expected


class Hub:
    """Replacement of the Hugging Face Hub client."""

    calls: list[tuple[Any, ...]] = []  # noqa: RUF012
    error: Exception | None = None

    def create_repo(self, repo_id: str, *, exist_ok: bool) -> None:
        self.calls.append(("create", repo_id, exist_ok))
        if self.error:
            raise self.error

    def upload_folder(self, *, repo_id: str, folder_path: Path, allow_patterns: list[str]) -> None:
        assert all((folder_path / name).is_file() for name in allow_patterns)
        self.calls.append(("upload", repo_id, folder_path, sorted(allow_patterns)))


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    monkeypatch.setattr(hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [])
    return Hub


def test_push_uploads_the_folder(
    run: Path, tmp_path: Path, network: type[Hub], capsys: pytest.CaptureFixture[str]
) -> None:
    cli.run(["share", str(run), "--out", str(tmp_path / "out"), "--push", "me/shapes"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / CARD)
    assert network.calls == [
        ("create", "me/shapes", True),
        ("upload", "me/shapes", tmp_path / "out", sorted([*FILES, CARD])),
    ]
    assert hub.ModelCard.load(tmp_path / "out" / CARD).data.model_name == "shapes"


def test_nothing_is_uploaded_without_push(run: Path, tmp_path: Path, network: type[Hub]) -> None:
    share(run, tmp_path / "out")
    assert network.calls == []


def test_failed_upload_keeps_the_folder(
    run: Path, tmp_path: Path, network: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "error", ConnectionError("no\nroute"))
    with pytest.raises(DfmsdError, match=r"me/shapes was not uploaded \(no route\); log in with `hf auth login`"):
        share(run, tmp_path / "out", push="me/shapes")
    assert (tmp_path / "out" / CARD).exists()


def _without(*names: str) -> Callable[[Path, Path], dict[str, Any]]:
    def change(run: Path, _: Path) -> dict[str, Any]:
        for name in names:
            (run / name).unlink()
        return {}

    return change


def _full(_: Path, out: Path) -> dict[str, Any]:
    out.mkdir()
    (out / "file").touch()
    return {}


def _other_classes(run: Path, out: Path) -> dict[str, Any]:
    baseline = shutil.copytree(run, out.parent / "baseline")
    (baseline / "metrics.json").write_text(json.dumps({"AP": 0.5, "per_class": {"cat": 0.5}}))
    return {"baseline": baseline}


def _other_images(run: Path, out: Path) -> dict[str, Any]:
    baseline = shutil.copytree(run, out.parent / "baseline")
    config = (baseline / "config.yaml").read_text()
    (baseline / "config.yaml").write_text(config.replace("image_size: 64", "image_size: 96"))
    return {"baseline": baseline}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("metrics.json"), "contains no metrics.json; pass the folder of a finished run"),
        (_without("student.safetensors"), "contains no student.safetensors; pass the folder of a finished run"),
        (_full, "already exists; choose a new folder"),
        (_other_classes, "was evaluated on other classes than"),
        (_other_images, "was evaluated on other images than"),
        (lambda *_: {"push": "no name"}, "`push`: 'no name' is not <user>/<name>"),
        (lambda *_: {"push": "shapes"}, "`push`: 'shapes' is not <user>/<name>; include both"),
        (lambda *_: {"baseline": Path("nowhere")}, "`baseline`: no run folder at nowhere"),
    ],
)
def test_invalid_input_is_rejected_before_writing(
    run: Path, tmp_path: Path, network: type[Hub], change: Callable[[Path, Path], dict[str, Any]], message: str
) -> None:
    mine, out = shutil.copytree(run, tmp_path / "run"), tmp_path / "out"
    values = change(mine, out)
    before = out.exists()
    with pytest.raises(DfmsdError) as caught:
        share(mine, out, **values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert out.exists() == before
    assert not (out / CARD).exists()
    assert network.calls == []


def test_missing_extra_is_named(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DfmsdError, match=r"share needs huggingface_hub .*: pip install 'dfmsd\[hub\]'"):
        share(run, tmp_path / "out")


def test_config_is_copied(run: Path, tmp_path: Path) -> None:
    share(run, tmp_path / "out")
    mine, theirs = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (run, tmp_path / "out"))
    assert mine == theirs
