"""Every command, config and Python block of README.md and docs/ runs, on tiny data.

Flags shrink the commands: size and number of images, epochs, widths, seeds. Each runs in a folder that already holds
its inputs; the quickstart runs in order in one folder. Skipped lines state their reason.
"""

from __future__ import annotations

import functools
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import yaml
from tests.helpers.documented import PAGES, ROOT, blocks, configs, shell_lines
from tests.helpers.exports import randomize
from tests.helpers.layouts import coco
from torch.distributed.tensor import DTensor

from dfmsd.cli import main as cli
from dfmsd.comparison import runner
from dfmsd.data import DataConfig
from dfmsd.detectors import load_detector, save_detector
from dfmsd.distillation.stages import StageConfig
from dfmsd.distillation.task import DistillationTask
from dfmsd.engine.run import distill
from dfmsd.estimation import estimator
from dfmsd.exporting import exporter, students
from dfmsd.launching.jobs import Job
from dfmsd.reporting import run_report
from dfmsd.tuning import contest, search

TINY = "--data.image_size 64 --data.batch_size 4"
SMALL = {
    "backbone": "mobilenetv3_small_050",
    "pretrained": "false",
    "frozen_stride": "0",
    "fpn_channels": "16",
    "head_convs": "1",
}
LONG = ("init", "train", "check", "distill", "estimate", "compare", "tune", "export", "report", "visualize")
"""Commands that take seconds even on tiny data."""
NOT_RUN = {
    "make": "creates a virtual environment, or trains for minutes: tests/test_docs.py dry-runs the target",
    "pip": "changes this Python environment: tests/test_docs.py compares the extras with pyproject.toml",
    "srun": "needs SLURM",
    "[": "needs SLURM",
    "trtexec": "needs TensorRT",
    "python": "hours of benchmarks on data that are not in the repository",
}
"""First word of a line -> reason for skipping it."""
NEEDS = {
    "predict": "supervision",
    "--track": "trackers",
    "share": "huggingface_hub",
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "ncnn": "ncnn",
    "litert": "litert_torch",
    "coreml": "coremltools",
    "wandb": "wandb",
    "slurm": "submitit",
    "ray": "ray",
    "[tensorboard, mlflow]": "mlflow",
}
"""Word of a line -> package of the extra it needs."""
FURTHER = {
    "distill": ["--overwrite"],
    "tune": shlex.split(
        "--trials 1 --stages.0.teacher runs/teacher_a --stages.1.teacher runs/teacher_b "
        """--tune.space '{"plan": ["config", "T1"]}'"""
    ),
}
"""Command -> flags that shorten it."""
BEFORE = {
    "report runs/compare": "compare --config compare.yaml --methods none,pkd",
    "predict --model shared/student": "share runs/student --out shared/student",
    "data photos": "predict --model runs/student --as-annotations photos/_annotations.coco.json photos",
}
"""Start of a line -> command whose results it reads."""


def why_not(page: Path, line: Sequence[str]) -> str | None:
    if page.name == "results.md":
        return NOT_RUN["python"]
    if line[:2] == ["dfmsd", "demo"]:
        return "trains for minutes: tests/test_docs.py parses it"
    if line[:3] == ["dfmsd", "recipe", "run"]:
        return "needs COCO or MMDetection: tests/recipes"
    if "cluster.yaml" in line or ("--launcher" in line and "local" not in line):
        return "needs a cluster: tests/launching uses one where there is one"
    if "--web" in line:
        return "downloads onnxruntime-web: tests/test_browser_web.py exports the page and opens it"
    if "--push" in line:
        return "uploads: tests/test_sharing.py uses a fake hub"
    return NOT_RUN.get(line[0])


def cases() -> Iterator[Any]:
    """Yield every line of every page except the quickstart, and one for each config that no line reads."""
    lines = [(page, line) for page in PAGES for line in shell_lines(page) if page.name != "quickstart.md"]
    read = {word for page in PAGES for line in shell_lines(page) for word in line if word.endswith(".yaml")}
    lines += [(Path(name), ["dfmsd", "distill", "--config", name]) for name, _ in configs() if name not in read]
    for page, line in lines:
        reason = why_not(page, line)
        marks = [pytest.mark.skip(reason=reason)] if reason else []
        if set(line) & set(LONG):
            marks.append(pytest.mark.slow)
        yield pytest.param(line, id=f"{page.name}: {' '.join(line)[:70]}", marks=marks)


@pytest.fixture(scope="module")
def stock(
    tiny_root: Path,
    tiny_teachers: tuple[str, str],
    finished_run: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Return a folder with everything the commands read: data, configs, teachers, a student and its baseline."""
    folder = tmp_path_factory.mktemp("documented") / "stock"
    for name in ("DATA", "data"):
        shutil.copytree(tiny_root, folder / name)
    for number in (1, 2):
        shutil.copy(tiny_root / "val" / f"val_{number}.jpg", folder / "data" / "val" / f"{number}.jpg")
    for source, names in zip(tiny_teachers, (("teacher_a", "teacher"), ("teacher_b",)), strict=True):
        for name in names:
            shutil.copytree(source, folder / "runs" / name)
    shutil.copytree(tiny_root / "train", folder / "photos")
    for name, text in configs():
        (folder / name).write_text(text)
    (folder / "configs").symlink_to(ROOT / "configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # the run's config names its teachers as the commands do
        stages = [StageConfig(1, teacher=f"runs/teacher_{name}") for name in "ab"]
        data = DataConfig("DATA", image_size=64, batch_size=4)
        for name in ("student", "baseline"):
            run = finished_run(name, no_distill=name == "baseline", stages=stages, data=data)
            save_detector(randomize(load_detector(str(run))), run)
            shutil.copytree(run, folder / "runs" / name)
    return folder


@pytest.fixture
def place(stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a copy of the stock, with shortened timings."""
    folder = shutil.copytree(stock, tmp_path / "place", symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DFMSD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(estimator, "estimate", functools.partial(estimator.estimate, seconds=0))
    monkeypatch.setattr(exporter, "LATENCY_SECONDS", 0.0)
    monkeypatch.setattr(students, "CANDIDATES", ("ssdlite/mobilenetv3_small_050",))
    for module in (runner, search, contest):
        monkeypatch.setattr(module, "run_all", run_here)
    return folder


def run_here(runs: Iterable[Job], jobs: int, ended: Any, *arguments: Any, **options: Any) -> None:
    """Run a comparison or a search in this process; tests/launching/test_jobs.py tests its worker processes."""
    for run in runs:
        distill(run.config, resume=run.folder.path.exists(), allow_weak_teacher=True, check_images=1)
        run_report(run.folder.path)
        ended(run, None)


def small(line: Sequence[str]) -> list[str]:
    """Return flags that shorten a command of dfmsd to seconds."""
    if "--config" not in line:
        return []
    config = yaml.safe_load(Path(line[line.index("--config") + 1]).read_text(encoding="utf-8"))
    part = "model" if line[0] == "train" else "student"
    flags = [*TINY.split(), *(word for key, value in SMALL.items() for word in (f"--{part}.{key}", value))]
    if not Path(config["data"]["root"]).exists():
        flags += ["--data.root", "DATA"]
    if line[0] == "compare":
        if config["pairs"].keys() == {"digits"}:  # its teachers would be trained on other data
            flags += ["--pairs", '{"digits": ["runs/teacher_a", "runs/teacher_b"]}']
        return [*flags, "--epochs", "3", "--seeds", "0", "--allow-weak-teacher"]
    if line[0] == "train":
        return [*flags, "--epochs", "1", "--overwrite"]
    for place, stage in enumerate(config["stages"]):
        flags += [f"--stages.{place}.epochs", "2" if "near" in stage else "1"]
        if "near" in stage:
            flags += [
                f"--stages.{place}.near.backbone",
                SMALL["backbone"],
                f"--stages.{place}.near.pretrained",
                "false",
            ]
    if "pseudo" in config["data"]:  # the other teachers find nothing
        flags += ["--data.pseudo.score", "0.01", "--data.pseudo.teacher", "runs/baseline"]
    if line[0] == "estimate":
        return flags
    return [*flags, "--allow-weak-teacher", *FURTHER.get(line[0], [])]


def run(line: Sequence[str]) -> None:
    """Run a line of the shell, with at most two processes."""
    ours = list(line[line.index("dfmsd") + 1 :])
    command = [*ours, *small(ours)]
    if line[0] == "torchrun":
        start = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "dfmsd"]
        subprocess.run([sys.executable, *start, *command], check=True)
    elif "--devices" in line:
        subprocess.run([sys.executable, "-m", "dfmsd", *command], check=True)
    else:
        cli.run(command)


def outputs(line: Sequence[str]) -> list[Path]:
    """Return the files that a command of dfmsd has to write."""
    out = line[line.index("--out") + 1] if "--out" in line else None
    for flag in ("--json", "--as-annotations"):
        if flag in line:
            return [Path(line[line.index(flag) + 1])]
    if line[0] == "report":
        return list(Path(line[1]).glob("*/report.html")) or [Path(line[1], "report.html")]  # of each pair, or of a run
    if "--bundle" in line:
        return [Path(line[line.index("--bundle") + 1])]
    if line[0] == "export":
        suffixes = {"ncnn": ".ncnn.param", "litert": ".tflite", "coreml": ".mlpackage"}
        suffix = next((suffixes[word] for word in line if word in suffixes), ".onnx")
        return [Path(out or f"runs/student/student{suffix}")]
    if "--config" in line and line[0] in ("train", "distill", "compare", "tune") and "--dry-run" not in line:
        config = yaml.safe_load(Path(line[line.index("--config") + 1]).read_text(encoding="utf-8"))
        folder = Path(out or config["out"])
        pages = [folder / pair for pair in config["pairs"]] if line[0] == "compare" else [folder]
        return [page / "report.html" for page in pages]
    return [Path(out)] if out else []


@pytest.mark.parametrize("line", list(cases()))
def test_the_line_runs(line: list[str], place: Path) -> None:
    for word in set(line) & set(NEEDS):
        pytest.importorskip(NEEDS[word], reason=f"needs {NEEDS[word]}")
    ours = line[line.index("dfmsd") + 1 :]
    if ours[0] == "convert":
        coco(place / "SOURCE")
        shutil.rmtree(place / "data")
    if "clip.mp4" in ours:
        pictures(place)
    for beginning, first in BEFORE.items():
        if " ".join(ours).startswith(beginning):
            run(["dfmsd", *first.split()])
    paths = outputs(ours)
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    run(line)
    assert all(path.exists() for path in paths)


def pictures(folder: Path) -> None:
    """Write the files that the command of docs/predict.md names."""
    import numpy as np
    import supervision
    from PIL import Image

    for name in ("one.jpg", "two.png"):
        Image.new("RGB", (64, 48), (200, 40, 40)).save(folder / name)
    shape = supervision.VideoInfo(width=64, height=64, fps=5, total_frames=2)
    with supervision.VideoSink(str(folder / "clip.mp4"), shape) as video:
        for _ in range(2):
            video.write_frame(np.zeros((64, 64, 3), dtype=np.uint8))


def shorten(training: Path) -> None:
    """Write what `small` changes into a training, so that it is the one that its student names."""
    config = yaml.safe_load(training.read_text(encoding="utf-8"))
    config["data"] |= {"image_size": 64, "batch_size": 4}
    config["model"] |= {key: yaml.safe_load(value) for key, value in SMALL.items()}
    training.write_text(yaml.safe_dump({**config, "epochs": 1}), encoding="utf-8")


@pytest.mark.slow
def test_the_quickstart_runs(place: Path) -> None:
    """Run the page's lines in order, starting from the data alone."""
    for package in ("supervision", "onnxruntime"):
        pytest.importorskip(package)
    shutil.rmtree(place / "runs")
    for name in ("my.yaml", "my-teacher.yaml"):
        (place / name).unlink()
    for line in shell_lines(ROOT / "docs" / "quickstart.md"):
        if line[0] == "dfmsd":
            run(line)
            assert all(path.exists() for path in outputs(line[1:]))
        if line[:2] == ["dfmsd", "init"]:
            shorten(place / "my-teacher.yaml")
    for name in ("my-teacher", "student", "baseline"):
        assert (place / "runs" / name / "student.safetensors").exists()
    assert (place / "pictures" / "contact_sheet.png").exists()
    assert (place / "predictions" / "predictions.json").exists()


PYTHON = {f"{page.name} {n}": block for page in PAGES for n, block in enumerate(blocks(page, "python"), 1)}
ELSEWHERE = {
    **dict.fromkeys(["README.md 1", "README.md 2"], "tests/test_readme.py"),
    **{f"add-a-detector.md {number}": "tests/test_readme.py" for number in (1, 2, 3)},
    "add-a-loss.md 1": "tests/test_readme.py",
    # where FiftyOne is installed, by its reader alone: the block opens a window
    "predict.md 3": "tests/test_fiftyone.py",
}
"""Block -> the test that runs it."""
HERE = {"predict.md 1", "predict.md 2", "share.md 1", "distributed.md 1"}


def execute(name: str, **names: Any) -> dict[str, Any]:
    exec(compile(PYTHON[name].text, name, "exec"), names)
    return names


def test_every_block_of_python_runs_somewhere() -> None:
    assert PYTHON.keys() == {*ELSEWHERE, *HERE}


def test_supervision_reads_predictions(place: Path) -> None:
    pytest.importorskip("supervision")
    run(["dfmsd", "predict", "--model", "runs/student", "--out", "predictions", "DATA/val"])
    found = execute("predict.md 2")["found"]
    assert found.classes == ["square", "disc"]
    assert len(found) == 4


def test_a_detector_predicts_in_python(place: Path) -> None:
    pytest.importorskip("supervision")
    pictures(place)
    prediction = execute("predict.md 1")["prediction"]
    assert len(prediction) == len(prediction.class_names)
    assert (place / "one-drawn.png").is_file()


def test_a_shared_folder_is_fetched_and_loaded(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    run(["dfmsd", "share", "runs/student", "--out", "shared/student"])

    def fetch(repository: str, allow_patterns: list[str]) -> str:
        for file in {file for pattern in allow_patterns for file in Path("shared/student").glob(pattern)}:
            (Path("hub") / repository).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, Path("hub") / repository)
        return str(Path("hub") / repository)

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    assert execute("share.md 1")["detector"].class_names == ("square", "disc")


def test_a_task_is_sharded(task: DistillationTask, tmp_path: Path) -> None:
    dist.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        names = {"student": task.student, "stages": task.stages, "teachers": task.teachers}
        sharded = execute("distributed.md 1", **names)["task"]
        assert {type(value) for value in sharded.parameters()} == {DTensor}
    finally:
        dist.destroy_process_group()
