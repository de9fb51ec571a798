"""Files from strangers: no code in them runs, no path leads astray, names stay text."""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import os
import pickle
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from tests.helpers.bad_input import TRUTH, says, truth_file, unfinished_run
from tests.helpers.bad_input import dfmsd as dfmsd
from tests.helpers.command import STUDENT, Command
from tests.helpers.tiny_transformers import needs_transformers, save_model

import dfmsd as package
from dfmsd.data import open_split
from dfmsd.detectors import DetectorConfig, build_detector, load_detector, save_detector
from dfmsd.detectors.mmdet.files import read_checkpoint
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.configfile import read_config
from dfmsd.errors import DfmsdError
from dfmsd.reporting import comparison_report, run_report
from dfmsd.utils.store import DiskStore

# Calls in the source.

SOURCE = Path(package.__file__).parent
UNPICKLERS = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")
SHELLS = ("os.system", "os.popen", "yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "torch.hub.load")
ALLOWED = {
    (
        "detectors/torchvision/pretrained.py",
        "get_model(weights=...)",
    ): "`download_weights` has just read the file, without running code in it, and checks a download's hash",
}
"""File and call -> why it is no danger."""


def dotted(node: ast.AST) -> str:
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def dangers(tree: ast.AST) -> Iterator[str]:
    """Name what may run code out of a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (f"import {name}" for name in names if name.split(".")[0] in UNPICKLERS)
        elif isinstance(node, ast.Call):
            yield from call_dangers(dotted(node.func), {key.arg: ast.unparse(key.value) for key in node.keywords})


def call_dangers(name: str, given: dict[str | None, str]) -> Iterator[str]:
    last = name.split(".")[-1]
    if name in ("eval", "exec", "compile", "__import__") or name in SHELLS:
        yield name
    if name in ("torch.load", "torch.hub.load_state_dict_from_url") or name.endswith((".fit", ".get_state_dict")):
        if given.get("weights_only") != "True":
            yield f"{last} without weights_only"
        if last == "get_state_dict" and given.get("check_hash") != "True":
            yield "a download without its hash"
    if last == "load_from_checkpoint" or (last == "load" and name.startswith(("np.", "numpy."))):
        yield name
    if last == "get_model" and given.get("weights", "None") != "None":
        yield "get_model(weights=...)"
    if given.get("trust_remote_code", "False") != "False" or given.get("shell", "False") != "False":
        yield f"{last} of foreign code"


def test_no_call_in_the_source_runs_code_out_of_a_file() -> None:
    found = {
        (str(path.relative_to(SOURCE)), danger)
        for path in SOURCE.rglob("*.py")
        for danger in dangers(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "import pickle",
        "from pickle import loads",
        "yaml.load(x, Loader=y)",
        "np.load(x, allow_pickle=True)",
        "eval(x)",
        "exec(x)",
        "trainer.fit(m, ckpt_path=x)",
        "weights.get_state_dict(weights_only=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "subprocess.run(x, shell=True)",
        "LightningModule.load_from_checkpoint(x)",
        "get_model(x, weights=y)",
    ],
)
def test_the_search_finds_unsafe_calls(code: str) -> None:
    assert list(dangers(ast.parse(code)))


def test_every_url_in_the_source_is_encrypted() -> None:
    for path in SOURCE.rglob("*.py"):
        assert not re.search(r"\bhttp://(?!www\.w3\.org/)", path.read_text(encoding="utf-8")), path


def test_weights_are_downloaded_encrypted_and_torchvisions_with_a_hash() -> None:
    names = torchvision.models.list_models(exclude=["quantized*"])
    urls = [weights.url for name in names for weights in torchvision.models.get_model_weights(name)]
    assert len(urls) > 100
    assert all(re.fullmatch(r"https://.*-[0-9a-f]{8,}\.pth", url) for url in urls)
    given = [timm.get_pretrained_cfg(name).url for name in timm.list_pretrained()]
    assert all(url.startswith("https://") for url in given if url)


# Pickles. Each of these would leave a file behind.


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path(self.target),)  # type: ignore[return-value]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "pwned"


def write_zip(bomb: object, path: Path) -> None:
    torch.save({"weight": bomb}, path)


def write_old(bomb: object, path: Path) -> None:
    torch.save({"weight": bomb}, path, _use_new_zipfile_serialization=False)


def write_plain(bomb: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(bomb))


WRITERS = pytest.mark.parametrize("write", [write_zip, write_old, write_plain])
Write = Callable[[object, Path], None]


@WRITERS
def test_the_pickles_are_live(target: Path, tmp_path: Path, write: Write) -> None:
    write(Bomb(target), tmp_path / "bomb")
    if write is write_plain:
        pickle.loads((tmp_path / "bomb").read_bytes())
    else:
        torch.load(tmp_path / "bomb", weights_only=False)
    assert target.exists()


@WRITERS
@pytest.mark.parametrize("name", ["bomb.pth", "bomb.safetensors"])
def test_a_pickle_of_pretrained_weights_is_refused(dfmsd: Command, target: Path, write: Write, name: str) -> None:
    write(Bomb(target), dfmsd.folder / name)
    error = dfmsd.refusal("distill", "--config", "good.yaml", "--student.pretrained", name)
    says(error, (name, "not a checkpoint that can be read safely", "pass a .safetensors file"))
    assert "weights_only" not in error  # torch's own advice is to run it
    assert not target.exists()


@WRITERS
def test_a_pickle_is_refused_as_teacher(dfmsd: Command, target: Path, write: Write) -> None:
    write(Bomb(target), dfmsd.folder / "bomb.pth")
    write(Bomb(target), dfmsd.folder / "bomb.safetensors")
    folder = dfmsd.folder / "teacher"
    save_detector(build_detector(DetectorConfig(**STUDENT), ["square", "disc"]), folder)  # type: ignore[arg-type]
    write(Bomb(target), folder / "student.safetensors")
    for teacher, piece in (
        ("bomb.pth", "is not a checkpoint of dfmsd"),
        ("bomb.safetensors", "bomb.json is missing"),
        ("teacher", "teacher/student.safetensors is not a checkpoint"),
        ("timm:test_resnet?weights=bomb.pth", "bomb.pth is not a checkpoint"),
    ):
        stages = json.dumps([{"teacher": teacher, "epochs": 1}])
        says(dfmsd.refusal("distill", "--config", "good.yaml", "--stages", stages), (piece,))
    assert not target.exists()


@WRITERS
def test_a_pickle_is_refused_as_mmdetection_checkpoint(tmp_path: Path, target: Path, write: Write) -> None:
    write(Bomb(target), tmp_path / "bomb.pth")
    with pytest.raises(DfmsdError, match=r"bomb\.pth cannot be read without running code in it"):
        read_checkpoint(tmp_path / "bomb.pth")
    assert not target.exists()


@needs_transformers
@pytest.mark.transformers
def test_a_pickle_is_refused_as_transformers_model(tmp_path: Path, target: Path) -> None:
    folder = tmp_path / "model"
    save_model("rt_detr", folder)
    (folder / "model.safetensors").unlink()
    write_zip(Bomb(target), folder / "pytorch_model.bin")
    with pytest.raises(DfmsdError, match=r"hf:.*model.*model\.safetensors"):
        load_detector(f"hf:{folder}")
    assert not target.exists()


@WRITERS
def test_a_pickle_is_not_resumed(dfmsd: Command, target: Path, write: Write) -> None:
    write(Bomb(target), unfinished_run(dfmsd.folder) / "last.ckpt")
    error = dfmsd.refusal("train", "--config", "run/config.yaml", "--resume")
    says(error, ("run/last.ckpt is damaged or not written by dfmsd",))
    assert not target.exists()


@WRITERS
def test_a_pickle_in_a_cache_counts_as_missing(tmp_path: Path, target: Path, write: Write) -> None:
    store = DiskStore(tmp_path / "cache", 10**6)
    write(Bomb(target), tmp_path / "cache" / "key.safetensors")
    assert store.get("key") is None
    store.put("key", {"p3": torch.ones(2)})
    assert torch.equal(store.get("key")["p3"], torch.ones(2))  # type: ignore[index]
    assert not target.exists()


# Configs.


@pytest.mark.parametrize(
    "text",
    [
        "out: !!python/object/apply:os.system ['touch pwned']\n",
        "data: {class_path: evil.Config}\nout: run\n",
        "data: other.yaml\nout: run\n",
        "stages: [{class_path: evil.Config}]\nout: run\n",
    ],
)
def test_a_config_runs_and_imports_nothing(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil.py").write_text("open('pwned', 'w')\nclass Config: pass\n")
    (tmp_path / "other.yaml").write_text("class_path: evil.Config\n")
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(DfmsdError, match=r"config\.yaml: "):
        read_config(DistillConfig, Path("config.yaml"))
    assert not (tmp_path / "pwned").exists()


# Paths.


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
@pytest.mark.parametrize("kind", ["file", "folder", "split"])
def test_a_link_out_of_the_data_is_refused(dfmsd: Command, kind: str) -> None:
    train, private = dfmsd.folder / "data" / "train", dfmsd.folder / "private"
    train.rename(private)
    if kind == "split":
        train.symlink_to(private)
    else:
        train.mkdir()
        (train / "more").symlink_to(private)
        (train / "0.png").symlink_to(private / "0.png")
        (train / "1.png").write_bytes((private / "1.png").read_bytes())
    names = ["more/0.png" if kind == "folder" else "0.png", "1.png"]
    images = [{**image, "file_name": name} for image, name in zip(TRUTH["images"], names, strict=True)]
    truth_file(dfmsd.folder).write_text(json.dumps({**TRUTH, "images": images}))
    error = dfmsd.refusal("distill", "--config", "good.yaml")
    says(error, ("instances_train.json", "lead out of data", names[0], "put the files themselves there"))


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_within_the_data_and_to_it_are_followed(dfmsd: Command) -> None:
    train = dfmsd.folder / "data" / "train"
    (train / "0.png").rename(dfmsd.folder / "data" / "blob")
    (train / "0.png").symlink_to("../blob")
    (dfmsd.folder / "link").symlink_to(dfmsd.folder / "data")
    for root in ("data", "link"):
        assert len(open_split(root, "train")) == 2


# Names in reports and on the terminal.

NAMES = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "</pre></svg><b>",
    "{{ 7 * 7 }}",
    "$x^",
    "[/b]",
    "&lt;",
)


class Page(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.handlers: list[str] = []
        self.sources: list[str] = []
        self.policy = ""
        self.scripts: list[str] = []
        self.data: list[str] = []
        self.text = ""
        self._into: list[str] | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.add(tag)
        self.handlers += [name for name in given if name.startswith("on")]
        self.sources += [given[name] for name in ("src", "href", "xlink:href") if name in given]
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]
        if tag == "script":
            self._into = self.data if given.get("type") == "application/json" else self.scripts
            self._into.append("")

    def handle_endtag(self, tag: str) -> None:
        self._into = None

    def handle_data(self, data: str) -> None:
        if self._into is None:
            self.text += data
        else:
            self._into[-1] += data

    def check(self) -> None:
        """Make sure that all which runs is the page's own."""
        assert not {"b", "i", "iframe", "object", "base"} & self.tags
        assert not self.handlers
        assert all(source.startswith(("data:image/", "#")) for source in self.sources)
        assert "default-src 'none'" in self.policy
        assert "unsafe-inline" not in self.policy.partition("script-src")[2]
        for script in self.scripts:
            assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in self.policy
            assert "alert(1)" not in script
        for text in self.data:
            json.loads(text)


def write_run(folder: Path) -> Path:
    """Write a run folder with such names wherever one comes from data or from a user."""
    folder.mkdir(parents=True)
    metrics = {"AP": 0.5, "AP50": 0.7, "AP75": 0.4, "APs": 0.1, "APm": 0.2, "APl": 0.3}
    (folder / "metrics.json").write_text(json.dumps({**metrics, "per_class": dict.fromkeys(NAMES, 0.5)}))
    (folder / "student.json").write_text(json.dumps({"class_names": NAMES, "parameters": 7}))
    (folder / "config.yaml").write_text(json.dumps({"out": NAMES[0], "data": {"root": NAMES[1]}, "more": NAMES[2]}))
    (folder / "environment.json").write_text(json.dumps(dict.fromkeys(NAMES, NAMES[1])))
    (folder / "epochs.csv").write_text("epoch,step,stage,AP,AP50,AP75\n0,1,1,0.2,0.3,0.1\n1,3,1,0.4,0.5,0.2\n")
    terms = [f'"{name}"' for name in (NAMES[0], NAMES[2], "$x^", "pearson/<i>")]
    rows = "".join(f"{step},0,1,1.0,0.5,0.5,0.5,0.5\n" for step in range(4))
    (folder / "log.csv").write_text(f"step,epoch,stage,loss,{','.join(terms)}\n{rows}")
    return folder


@pytest.mark.parametrize("name", ["<script>alert(2)<", "$x^_{", "[b]bold[", "{{ 7 * 7 }}"])
def test_names_stay_text_in_reports(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / name)
    plain = write_run(tmp_path / "plain")
    for path in (run_report(run), comparison_report(tmp_path / "report.html", {name: run, "distilled": plain})):
        page = Page(path.read_text(encoding="utf-8"))
        page.check()
        assert name in page.text
        if path.parent == run:
            assert all(each in page.text for each in NAMES[:5])


def test_brackets_in_a_name_are_printed_literally(dfmsd: Command) -> None:
    status, out, error = dfmsd("distill", "--config", "good.yaml", "--out", "[/run]")
    assert (status, out) == (0, "[/run]/report.html\n"), error
    assert "[/run]" in error
