"""A finished run as a folder to hand on: weights, description, config, metrics and a model card with their numbers."""

from __future__ import annotations

import html
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from jinja2 import Environment, StrictUndefined

from dfmsd.detectors import Detector, load_detector
from dfmsd.errors import DfmsdError, foreign_message
from dfmsd.evaluation.evaluate import percent
from dfmsd.reporting.records import RunRecord, read_run
from dfmsd.reporting.runconfig import run_config, teacher_folder, teacher_references
from dfmsd.runfolder import RunFolder
from dfmsd.utils.extras import import_extra
from dfmsd.utils.files import is_taken, write_text

FILES = ("student.safetensors", "student.json", "config.yaml", "metrics.json")
CARD = "README.md"
SCORES = {"AP": "AP at IoU 0.50:0.95", "AP50": "AP at IoU 0.50", "AP75": "AP at IoU 0.75"}
TEMPLATE = """\
---
{{ metadata }}
---

# {{ name }}

An object detector, {{ "distilled from bigger ones" if distilled else "trained" }} with dfmsd.

| | |
|---|---|
| architecture | {{ arch }} |
| parameters | {{ parameters }} |
| input | RGB in 0..1, the longer side {{ image_size }} pixels |
| classes | {{ classes | join(", ") }} |
| training data | {{ dataset }} |
| licence | {{ licence or "not stated" }} |

## Results

In percent, on the validation images of {{ dataset }}.

| model | AP | AP50 | AP75 | parameters |
|---|---|---|---|---|
{% for row in rows -%}
| {{ row | join(" | ") }} |
{% endfor %}

{% if distilled -%}
A teacher's numbers are those of its own run, where it has one.

{% endif -%}
| class | AP |
|---|---|
{% for class, ap in per_class -%}
| {{ class }} | {{ ap }} |
{% endfor %}

## Use

With the files of this page in a folder `model`:

```python
import dfmsd

detector = dfmsd.load_detector("model")
```

```bash
dfmsd predict --model model --out predictions images/
```
"""


@dataclass
class ShareOptions:
    """What is handed on, and under which names.

    Args:
        run: folder of a finished run.
        out: folder to make.
        name: of the model; None takes that of the repository, or of the run folder.
        dataset: name of the training data; None takes that of its folder.
        license: as the hub names it, such as apache-2.0; None states none.
        baseline: run folder whose numbers stand beside.
        push: ``user/name`` of the repository on the Hugging Face hub to upload to.
    """

    run: Path
    out: Path
    name: str | None = None
    dataset: str | None = None
    license: str | None = None
    baseline: Path | None = None
    push: str | None = None


def share(options: ShareOptions) -> Path:
    """Write the folder, and upload it if that was asked for.

    Returns:
        The model card.

    Raises:
        DfmsdError: no finished run, a folder that is not empty, another baseline's classes, or an upload that failed.
    """
    hub = import_extra("share", "huggingface_hub", "hub")
    record = _finished(options.run)
    baseline = _finished(options.baseline) if options.baseline else None
    if is_taken(options.out):
        raise DfmsdError(f"--out: {options.out} is there already; name a new folder")
    if options.push:
        _check_repository(hub, options.push)
    for name in FILES:
        if not (options.run / name).is_file():
            raise DfmsdError(f"{options.run} holds no {name}: give the folder of a finished run")
    detector = load_detector(options.run)
    if baseline is not None and _classes(baseline) != _classes(record):
        raise DfmsdError(f"--baseline: {baseline.folder} was measured on other classes than {options.run}")
    card = _card(hub, options, record, detector, baseline)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(options.run / name, options.out / name)
    write_text(options.out / CARD, card)
    if options.push:
        _upload(hub, options.out, options.push)
    return options.out / CARD


def _card(
    hub: ModuleType,
    options: ShareOptions,
    record: RunRecord,
    detector: Detector,
    baseline: RunRecord | None,
) -> str:
    metrics, config = record.metrics or {}, detector.config
    assert config is not None
    name = options.name or (options.push or record.folder.resolve().name).rpartition("/")[2]
    dataset = options.dataset or Path(RunFolder(record.folder).data_root() or "").name
    teachers = teacher_references(run_config(record))
    parameters = sum(parameter.numel() for parameter in detector.parameters())
    rows = [_row(name, metrics, parameters)]
    if baseline is not None:
        rows.append(_row("baseline", baseline.metrics or {}, baseline.parameters))
    for teacher in teachers:
        folder = teacher_folder(teacher)
        its = read_run(folder) if folder else None
        rows.append(_row(f"teacher {_brief(teacher)}", (its and its.metrics) or {}, its.parameters if its else None))
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    content = environment.from_string(TEMPLATE).render(
        metadata=_metadata(hub, name, dataset, options.license, metrics, distilled=bool(teachers)),
        name=escaped(name),
        distilled=bool(teachers),
        arch=escaped(" ".join(filter(None, (config.arch, config.backbone)))),
        parameters=f"{parameters:,}",
        image_size=RunFolder(record.folder).image_size(),
        classes=[escaped(one) for one in detector.class_names],
        dataset=escaped(dataset),
        licence=escaped(options.license or ""),
        rows=rows,
        per_class=[(escaped(one), percent(ap)) for one, ap in metrics["per_class"].items()],
    )
    return str(hub.ModelCard(content))  # reads the metadata back, and refuses what is none


def _metadata(
    hub: ModuleType, name: str, dataset: str, licence: str | None, metrics: Mapping[str, Any], *, distilled: bool
) -> str:
    results = [
        hub.EvalResult(
            task_type="object-detection",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split="val",
            metric_type=key,
            metric_name=label,
            metric_value=metrics[key],
        )
        for key, label in SCORES.items()
        if metrics.get(key) is not None
    ]
    tags = ["dfmsd", *(["knowledge-distillation"] if distilled else [])]
    about = {"library_name": "dfmsd", "pipeline_tag": "object-detection", "tags": tags, "license": licence}
    return str(hub.ModelCardData(**about, model_name=name, eval_results=results or None).to_yaml())


def _row(label: str, metrics: Mapping[str, Any], parameters: int | None) -> list[str]:
    count = "-" if parameters is None else f"{parameters:,}"
    return [escaped(label), *(percent(metrics.get(name)) for name in SCORES), count]


def _brief(reference: str) -> str:
    """Leave out the folders of this machine."""
    return reference if ":" in reference else Path(reference).name


def escaped(text: str) -> str:
    """Write a text so that neither Markdown nor HTML sees anything but letters in it."""
    return re.sub(r"([\\`*_{}\[\]#|~$:])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _classes(record: RunRecord) -> list[str]:
    return list((record.metrics or {})["per_class"])


def _finished(run: Path) -> RunRecord:
    record = read_run(run)
    if record.metrics is None or "per_class" not in record.metrics:
        raise DfmsdError(f"{run} holds no metrics.json: give the folder of a finished run")
    return record


def _check_repository(hub: ModuleType, name: str) -> None:
    try:
        hub.utils.validate_repo_id(name)
    except hub.errors.HFValidationError as error:
        raise DfmsdError(f"--push: {name!r} is no <user>/<name> ({foreign_message(error)})") from error
    if name.count("/") != 1:
        raise DfmsdError(f"--push: {name!r} is no <user>/<name>; name both")


def _upload(hub: ModuleType, folder: Path, name: str) -> None:
    api = hub.HfApi()
    try:
        api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=[*FILES, CARD])
    except Exception as error:  # the network, the token and the rights fail in many ways
        raise DfmsdError(
            f"--push: {name} was not uploaded ({foreign_message(error)}); log in by `hf auth login`, then upload"
            f" {folder} by `hf upload {name} {folder}`"
        ) from error
