"""Sharing of a finished run: a folder with weights, config, metrics and a model card."""

from __future__ import annotations

import html
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from jinja2 import Environment, StrictUndefined

from dfmsd.detectors import Detector, load_detector
from dfmsd.errors import DfmsdError, foreign_message
from dfmsd.evaluation.evaluate import percent
from dfmsd.reporting.records import RunRecord, read_run
from dfmsd.reporting.runconfig import run_config, same_images, teacher_folder, teacher_references
from dfmsd.runfolder import RunFolder, check_run
from dfmsd.utils.extras import import_extra
from dfmsd.utils.files import check_writable, is_taken, new_folder, write_text

_RUN = RunFolder(Path())
FILES = tuple(file.name for file in (_RUN.weights_file, _RUN.description_file, _RUN.config_file, _RUN.metrics_file))
"""Files of a run that are shared."""
CARD = "README.md"
SCORES = {"AP": "AP at IoU 0.50:0.95", "AP50": "AP at IoU 0.50", "AP75": "AP at IoU 0.75"}
TEMPLATE = """\
---
{{ metadata }}
---

# {{ name }}

An object detector, {{ "distilled from larger ones" if distilled else "trained" }} with dfmsd.

| | |
|---|---|
| architecture | {{ arch }} |
| parameters | {{ parameters }} |
| input | RGB in 0..1, longer side {{ image_size }} pixels |
| classes | {{ classes | join(", ") }} |
| training data | {{ dataset }} |
| license | {{ license or "not stated" }} |

## Results

In percent, on the validation images of {{ dataset }}.

| model | AP | AP50 | AP75 | parameters |
|---|---|---|---|---|
{% for row in rows -%}
| {{ row | join(" | ") }} |
{% endfor %}

{% if distilled -%}
The numbers of a teacher come from its own run, if there is one.

{% endif -%}
| class | AP |
|---|---|
{% for class, ap in per_class -%}
| {{ class }} | {{ ap }} |
{% endfor %}

## Use

With the files of this repository in a folder `model`:

```python
import dfmsd

detector = dfmsd.load_detector("model")
```

```bash
dfmsd predict --model model --out predictions images/
```
"""


def share(
    run: str | Path,
    out: str | Path,
    *,
    name: str | None = None,
    dataset: str | None = None,
    license: str | None = None,
    baseline: str | Path | None = None,
    push: str | None = None,
) -> Path:
    """Write the folder, and upload it if ``push`` is given.

    Args:
        run: folder of a finished run.
        out: folder to create.
        name: of the model; by default that of the repository or the run folder.
        dataset: name of the training data; by default that of its folder.
        license: Hugging Face license identifier such as apache-2.0; by default none is stated.
        baseline: run folder to include in the table of results.
        push: repository on the Hugging Face Hub to upload to, ``user/name``.

    Returns:
        Path of the model card.

    Raises:
        DfmsdError: the run is not finished, the folder exists, the baseline was evaluated on other classes or
            images, or the upload failed.
    """
    hub = import_extra("share", "huggingface_hub", "hub")
    run, out = Path(run), Path(out)
    record = _finished(run)
    if baseline:
        check_run(Path(baseline), run, name="baseline")
    baseline_record = _finished(Path(baseline)) if baseline else None
    if is_taken(out):
        raise DfmsdError(f"`out`: {out} already exists; choose a new folder")
    check_writable(out)
    if push:
        _check_repository(hub, push)
    for file in FILES:
        if not (run / file).is_file():
            raise DfmsdError(f"{run} contains no {file}; pass the folder of a finished run")
    detector = load_detector(run)
    if baseline_record is not None:
        _check_comparable(baseline_record, record)
    name = name or (push or record.folder.resolve().name).rpartition("/")[2]
    root = Path(RunFolder(run).data_root() or "")
    dataset = dataset or root.name
    if dataset in ("", ".."):
        raise DfmsdError(f"`dataset`: required because the run's data.root, {str(root)!r}, is no name of a data set")
    card = _card(hub, record, detector, baseline_record, name=name, dataset=dataset, license=license)
    with new_folder(out) as folder:
        for file in FILES:
            shutil.copyfile(run / file, folder / file)
        write_text(folder / CARD, card)
    if push:
        _upload(hub, out, push)
    return out / CARD


def _check_comparable(baseline: RunRecord, record: RunRecord) -> None:
    """Refuse a baseline that was evaluated on other classes or images than a run."""
    if _classes(baseline) != _classes(record):
        raise DfmsdError(f"`baseline`: {baseline.folder} was evaluated on other classes than {record.folder}")
    if not same_images(run_config(baseline), run_config(record)):
        raise DfmsdError(
            f"`baseline`: {baseline.folder} was evaluated on other images than {record.folder}, or at another size"
        )


def _card(
    hub: ModuleType,
    record: RunRecord,
    detector: Detector,
    baseline: RunRecord | None,
    *,
    name: str,
    dataset: str,
    license: str | None,
) -> str:
    metrics, config = record.metrics or {}, detector.config
    assert config is not None
    own_config = run_config(record)
    teachers = teacher_references(own_config)
    parameters = sum(parameter.numel() for parameter in detector.parameters())
    tested = record.test_metrics or {}
    rows = [_row(name, metrics, parameters)]
    if tested:
        rows.append(_row(f"{name} on the test split", tested, parameters))
    if baseline is not None:
        rows.append(_row("baseline", baseline.metrics or {}, baseline.parameters))
    for teacher in teachers:
        folder = teacher_folder(teacher)
        its_run = read_run(folder) if folder else None
        comparable = its_run and same_images(run_config(its_run), own_config, teaches=True)
        its_metrics = (its_run and comparable and its_run.metrics) or {}
        rows.append(_row(f"teacher {_short_name(teacher)}", its_metrics, its_run.parameters if its_run else None))
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    content = environment.from_string(TEMPLATE).render(
        metadata=_metadata(hub, name, dataset, license, metrics, tested, distilled=bool(teachers)),
        name=escaped(name),
        distilled=bool(teachers),
        arch=escaped(" ".join(filter(None, (config.arch, config.backbone)))),
        parameters=f"{parameters:,}",
        image_size=RunFolder(record.folder).image_size(),
        classes=[escaped(one) for one in detector.class_names],
        dataset=escaped(dataset),
        license=escaped(license or ""),
        rows=rows,
        per_class=[(escaped(one), percent(ap)) for one, ap in metrics["per_class"].items()],
    )
    return str(hub.ModelCard(content))  # parses the metadata, and raises if it is invalid


def _metadata(
    hub: ModuleType,
    name: str,
    dataset: str,
    license: str | None,
    metrics: Mapping[str, Any],
    test_metrics: Mapping[str, Any],
    *,
    distilled: bool,
) -> str:
    results = [
        hub.EvalResult(
            task_type="object-detection",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=split,
            metric_type=key,
            metric_name=label,
            metric_value=values[key],
        )
        for split, values in (("val", metrics), ("test", test_metrics))
        for key, label in SCORES.items()
        if values.get(key) is not None
    ]
    tags = ["dfmsd", *(["knowledge-distillation"] if distilled else [])]
    about = {"library_name": "dfmsd", "pipeline_tag": "object-detection", "tags": tags, "license": license}
    return str(hub.ModelCardData(**about, model_name=name, eval_results=results or None).to_yaml())


def _row(label: str, metrics: Mapping[str, Any], parameters: int | None) -> list[str]:
    count = "-" if parameters is None else f"{parameters:,}"
    return [escaped(label), *(percent(metrics.get(name)) for name in SCORES), count]


def _short_name(reference: str) -> str:
    """Remove the local folders."""
    return reference if ":" in reference else Path(reference).name


def escaped(text: str) -> str:
    """Escape a text for Markdown and HTML."""
    return re.sub(r"([\\`*_{}\[\]#|~$:])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _classes(record: RunRecord) -> list[str]:
    return list((record.metrics or {})["per_class"])


def _finished(run: Path) -> RunRecord:
    record = read_run(run)
    if record.metrics is None or "per_class" not in record.metrics:
        raise DfmsdError(f"{run} contains no metrics.json; pass the folder of a finished run")
    return record


def _check_repository(hub: ModuleType, name: str) -> None:
    try:
        hub.utils.validate_repo_id(name)
    except hub.errors.HFValidationError as error:
        raise DfmsdError(f"`push`: {name!r} is not <user>/<name> ({foreign_message(error)})") from error
    if name.count("/") != 1:
        raise DfmsdError(f"`push`: {name!r} is not <user>/<name>; include both")


def _upload(hub: ModuleType, folder: Path, name: str) -> None:
    api = hub.HfApi()
    try:
        api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=[*FILES, CARD])
    except Exception as error:  # network, token and permission errors have many types
        raise DfmsdError(
            f"`push`: {name} was not uploaded ({foreign_message(error)}); log in with `hf auth login`, then upload"
            f" {folder} with `hf upload {name} {folder}`"
        ) from error
