"""Checks on a YAML file before it is parsed as a config: plain, small, and without duplicate keys."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from dfmsd.errors import DfmsdError, one_line

KINDS = {"tune": "tune", "pairs": "compare", "stages": "distill", "student": "distill", "model": "train"}
"""Key -> command whose config has it; the first one that a file has tells its kind."""
MAX_VALUES = 10_000
"""Values in a config file with every alias expanded: a few lines of nested aliases can stand for millions."""


def check_yaml(path: Path, config: type[Any] | None = None) -> None:
    """Refuse a YAML file that cannot be a config, before jsonargparse reads it.

    Args:
        path: the file; a missing one is left to the parser.
        config: class of the config.

    Raises:
        DfmsdError: not text, not YAML, not a mapping, the config of another command, a duplicate key, a key that names
            code, far more values than the file's size suggests, or a single value (which could be the path of another
            file) for a section.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        size = _check_nodes(root, {}, path)
        if size <= MAX_VALUES:
            yaml.safe_load(text)
    except OSError:
        return
    except UnicodeDecodeError as error:
        raise DfmsdError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8, or pass a YAML file") from error
    except DfmsdError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        message = one_line(error).replace('in "<unicode string>", ', "")
        raise DfmsdError(f"{path}: not valid YAML ({message}); correct it there") from error
    if size > MAX_VALUES:
        raise DfmsdError(f"{path}: its aliases stand for more than {MAX_VALUES} values; write them out")
    if not isinstance(root, yaml.MappingNode):
        raise DfmsdError(f"{path}: expected keys and values such as `out: runs/student`; write them there")
    if config is not None:
        _check_kind(root, config, path)
        _check_sections(root, config, path)


def _check_kind(root: yaml.MappingNode, config: type[Any], path: Path) -> None:
    keys = {key.value for key, _ in root.value}
    key = next((key for key in KINDS if key in keys), None)
    if key is not None and key not in get_type_hints(config):
        needed = next(command for key, command in KINDS.items() if key in get_type_hints(config))
        raise DfmsdError(
            f"{path} is a config of `dfmsd {KINDS[key]}`, as its key {key} tells; pass it there, or one of `dfmsd"
            f" {needed}` here"
        )


def _check_sections(root: yaml.MappingNode, config: type[Any], path: Path, prefix: str = "") -> None:
    nodes = {key.value: value for key, value in root.value}
    for name, kind in get_type_hints(config).items():
        if name not in nodes or not (isinstance(kind, type) and is_dataclass(kind)):
            continue
        if not isinstance(nodes[name], yaml.MappingNode):
            raise DfmsdError(
                f"{path}: {prefix}{name}: expected keys such as {fields(kind)[0].name}, got {nodes[name].value!r}; "
                "write keys and values, or leave it out"
            )
        _check_sections(nodes[name], kind, path, f"{prefix}{name}.")


def _check_nodes(node: yaml.Node | None, sizes: dict[int, float], path: Path) -> float:
    """Count the values below a node with every alias expanded; refuse duplicate keys."""
    if id(node) not in sizes:
        sizes[id(node)] = math.inf  # a node that contains itself has no end
        children = list(node.value) if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            keys = Counter(key.value for key, _ in children if isinstance(key, yaml.ScalarNode))
            twice = [key for key, count in keys.items() if count > 1]
            if twice:
                line = node.start_mark.line + 1
                raise DfmsdError(f"{path}: duplicate key {twice[0]!r} in the section at line {line}; remove one")
            if "class_path" in keys:  # the parser would import it
                raise DfmsdError(f"{path}: class_path names code, which a config never runs; write plain values")
            children = [child for pair in children for child in pair]
        sizes[id(node)] = 1 + sum(_check_nodes(child, sizes, path) for child in children)
    return sizes[id(node)]
