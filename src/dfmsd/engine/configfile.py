"""YAML files and flags -> config objects, through jsonargparse."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import jsonargparse
import yaml

from dfmsd.distillation.stages import StageConfig
from dfmsd.engine.config import DistillConfig, TrainConfig
from dfmsd.errors import DfmsdError, one_line
from dfmsd.runfolder import RunFolder

C = TypeVar("C")
LARGEST = 10_000
"""Values in a config file, every alias written out: a few lines of aliases of aliases are millions."""


def command_parser(description: str) -> jsonargparse.ArgumentParser:
    """Build an empty parser that raises instead of exiting, and takes no shortened flags: they may be typos."""
    return jsonargparse.ArgumentParser(exit_on_error=False, allow_abbrev=False, description=description)


def config_parser(config: type[Any]) -> jsonargparse.ArgumentParser:
    """Build a parser whose flags are the keys of ``config``, with ``--config FILE``."""
    parser = command_parser((config.__doc__ or "").splitlines()[0])
    parser.add_argument("--config", action="config", help="YAML file; flags that follow it win")
    parser.add_class_arguments(config, nested_key=None, fail_untyped=False)
    return parser


def build_config(config: type[C], values: Any) -> C:
    """Build the config object from parsed values, leaving out what is no field of it."""
    known = get_type_hints(config)
    with naming(vars(values).get("config") or ()):
        return config(**{name: value for name, value in vars(values).items() if name in known})


def read_config(config: type[C], path: Path) -> C:
    """Read one YAML file.

    Raises:
        DfmsdError: the file is missing, or holds something that the config does not know.
    """
    parser = config_parser(config)
    check_text(path, config)
    try:
        values = parser.parse_args(["--config", str(path)])
        values = parser.instantiate(values)
        values.config = None
        return build_config(config, values)
    except jsonargparse.ArgumentError as error:
        raise DfmsdError(f"{path}: {explain(error, config)}") from error
    except DfmsdError as error:
        raise DfmsdError(f"{path}: {error}") from error


def parse_config(config: type[C], values: Mapping[str, Any]) -> C:
    """Build a config from plain Python values, checked as those of a YAML file are.

    Raises:
        DfmsdError: an unknown key, a wrong type, or a value that the config refuses.
    """
    parser = config_parser(config)
    try:
        return build_config(config, parser.instantiate(parser.parse_object(dict(values))))
    except jsonargparse.ArgumentError as error:
        raise DfmsdError(explain(error, config)) from error


def read_run_config(run: Path) -> DistillConfig:
    """Read the ``config.yaml`` of a run folder; a training is the distillation without teachers that it stands for.

    Raises:
        DfmsdError: the file is missing or damaged, or another version's.
    """
    folder = RunFolder(run)
    file = folder.config_file
    if "model" in folder.read_config():
        return read_config(TrainConfig, file).as_distillation()
    return read_config(DistillConfig, file)


def config_files(arguments: Sequence[str]) -> list[Path]:
    """Name the files that follow ``--config``."""
    joined = [argument.partition("=")[2] for argument in arguments if argument.startswith("--config=")]
    following = [value for flag, value in pairwise(arguments) if flag == "--config"]
    return [Path(name) for name in joined + following]


def check_text(path: Path, config: type[Any] | None = None) -> None:
    """Refuse a YAML file that no config can come of, before the parser follows what it says.

    Args:
        path: of the file; one that is not there is left to the parser.
        config: that it is to become.

    Raises:
        DfmsdError: it is no text, no YAML, no mapping, has a key twice or one that names code, is far larger than it
            looks, or gives a single value, which may be the path of another file, where the config has keys.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        size = _check_nodes(root, {}, path)
        if size <= LARGEST:
            yaml.safe_load(text)
    except OSError:
        return
    except UnicodeDecodeError as error:
        raise DfmsdError(f"{path}: no text in UTF-8 ({error.reason}); give a YAML file") from error
    except DfmsdError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        message = one_line(error).replace('in "<unicode string>", ', "")
        raise DfmsdError(f"{path}: not valid YAML ({message}); correct it there") from error
    if size > LARGEST:
        raise DfmsdError(f"{path}: its aliases stand for more than {LARGEST} values; write them out")
    if not isinstance(root, yaml.MappingNode):
        raise DfmsdError(f"{path}: expected keys and values such as `out: runs/student`; write them there")
    parts = {key.value: value for key, value in root.value}
    for name, kind in get_type_hints(config).items() if config else ():
        section = isinstance(kind, type) and is_dataclass(kind)
        if section and not isinstance(parts.get(name, root), yaml.MappingNode):
            raise DfmsdError(
                f"{path}: {name}: expected keys such as {next(_keys(kind))}, got {parts[name].value!r}; "
                "give some, or leave it out"
            )


def _check_nodes(node: yaml.Node | None, known: dict[int, float], path: Path) -> float:
    """Count the values below a node with every alias written out; refuse a key that is there twice."""
    if id(node) not in known:
        known[id(node)] = math.inf  # what holds itself has no end
        parts = list(node.value) if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            keys = Counter(key.value for key, _ in parts if isinstance(key, yaml.ScalarNode))
            twice = [key for key, count in keys.items() if count > 1]
            if twice:
                line = node.start_mark.line + 1
                raise DfmsdError(
                    f"{path}: key {twice[0]!r} is there twice from line {line} on; leave out one of the two"
                )
            if "class_path" in keys:  # which the parser would import
                raise DfmsdError(f"{path}: class_path names code, which no config runs; write plain values")
            parts = [part for pair in parts for part in pair]
        known[id(node)] = 1 + sum(_check_nodes(part, known, path) for part in parts)
    return known[id(node)]


@contextmanager
def naming(files: Sequence[object]) -> Iterator[None]:
    """Name the files that a refused value may come from."""
    try:
        yield
    except DfmsdError as error:
        if not files:
            raise
        raise DfmsdError(f"{error} (in {', '.join(map(str, files))} or the flags)") from error


def explain(error: jsonargparse.ArgumentError, config: type[Any] | None) -> str:
    """Give a parser's complaint in one line; for a key that ``config`` does not know with the one that may be meant."""
    message = one_line(error).removesuffix(".")
    unknown = re.search(r"(?:Group '(\w+)' does not accept o|accept o|O)ption '([\w.]+)'", message)
    if config is None or unknown is None:
        return message
    key = ".".join(filter(None, unknown.groups()))
    near = get_close_matches(key, [*_keys(config), *_keys(StageConfig)], n=1)
    return f"{message}; did you mean {near[0]}?" if near else message


def _keys(config: type[Any]) -> Iterator[str]:
    """Name the fields of a dataclass, those of a dataclass in it as ``data.root``."""
    for name, kind in get_type_hints(config).items():
        yield name
        if isinstance(kind, type) and is_dataclass(kind):
            yield from (f"{name}.{key}" for key in _keys(kind))


def apply_list_flags(
    build_parser: Callable[[], jsonargparse.ArgumentParser], arguments: Sequence[str], key: str
) -> list[str]:
    """Turn ``--stages.0.epochs 3`` into a whole ``--stages [...]``, since jsonargparse knows no flags into lists.

    Args:
        build_parser: of one that knows the rest of the arguments; called where there is such a flag.
        arguments: of the command.
        key: of the list; where it holds a mapping, flags into it are left as they are.

    Raises:
        DfmsdError: there is no such entry, or the flag has no value.
    """
    rest: list[str] = []
    changes: dict[str, str] = {}
    remaining = iter(arguments)
    for argument in remaining:
        if argument.startswith(f"--{key}."):
            flag, equals, value = argument.partition("=")
            changes[flag] = value if equals else next(remaining, "")
        else:
            rest.append(argument)
    if not changes:
        return rest
    readable = [argument for argument in rest if not argument.startswith("--print_config")]  # it would print and exit
    entries = json.loads(json.dumps(build_parser().parse_args(readable).as_dict().get(key) or []))
    if isinstance(entries, dict):
        for flag in changes:
            if re.match(rf"--{key}\.\d", flag):
                raise DfmsdError(f"{flag}: {key} is no list; leave out the number, or give --{key} a list")
        return list(arguments)
    for flag, value in changes.items():
        position, *path = flag.removeprefix(f"--{key}.").split(".")
        if not position.isdecimal() or int(position) >= len(entries):
            raise DfmsdError(
                f"{flag}: {key} has {len(entries)} entries, counted from 0; name one, as in --{key}.0.<option>"
            )
        if not path:
            raise DfmsdError(f"{flag}: name the key too, such as --{key}.{position}.{next(iter(entries[0]))}")
        _set(entries[int(position)], path, flag, value)
    return [*rest, f"--{key}", json.dumps(entries)]


def _set(entry: dict[str, Any], path: Sequence[str], flag: str, value: str) -> None:
    *parents, last = path
    for parent in parents:
        entry = entry.setdefault(parent, {})
        if not isinstance(entry, dict):
            raise DfmsdError(f"{flag}: {parent} has no keys")
    try:
        entry[last] = jsonargparse.get_loader("yaml")(value)  # as in a file: for plain YAML, 1e-5 is a text
    except yaml.YAMLError as error:
        raise DfmsdError(f"{flag}: {value!r} is no value ({one_line(error)})") from error
    if not value:
        raise DfmsdError(f"{flag}: give it a value")
