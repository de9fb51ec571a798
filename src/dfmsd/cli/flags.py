"""Flags that jsonargparse cannot parse or explain: lists, with or without brackets, their entries, and two sizes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import jsonargparse
import yaml

from dfmsd.comparison.methods import split_methods
from dfmsd.engine.configfile import build_config
from dfmsd.errors import DfmsdError, one_line

C = TypeVar("C")
LIST_KEYS = ("stages", "loss")
"""Config keys that are, or may be, lists."""


def config_files(arguments: Sequence[str]) -> list[Path]:
    """Return the files passed by ``--config``."""
    return [Path(value) for flag, values in _grouped(arguments) if flag == "--config" for value in values[:1]]


def parsed_config(config: type[C], values: jsonargparse.Namespace) -> C:
    """Build a config from the parsed flags of a command."""
    with naming(values.get("config") or ()):
        return build_config(config, values)


def in_flags(message: str, parser: jsonargparse.ArgumentParser) -> str:
    """Name the parameters in a message, such as `check_images`, as flags of the command."""
    flags = {flag[2:].replace("-", "_"): flag for flag in parser._option_string_actions if flag.startswith("--")}
    return re.sub(r"`(\w+)`", lambda match: flags.get(match[1], match[0]), message)


@contextmanager
def naming(files: Sequence[object]) -> Iterator[None]:
    """Name the files that a refused value may come from."""
    try:
        yield
    except DfmsdError as error:
        if not files:
            raise
        raise DfmsdError(f"{error} (in {', '.join(map(str, files))} or the flags)") from error


def split_lists(arguments: Sequence[str]) -> list[str]:
    """Turn ``--methods a,b[c=1,d=2] --seeds 0 1`` into JSON lists, whether commas or spaces part the values."""
    split: dict[str, Callable[[str], list[Any]]] = {
        "--methods": split_methods,
        "--seeds": lambda text: [int(seed) if seed.strip().isdigit() else seed for seed in text.split(",")],
    }
    joined: list[str] = []
    for flag, values in _grouped(arguments):
        if flag in split and values and not any(value.startswith("[") for value in values):
            values = [json.dumps(split[flag](",".join(value.strip(", ") for value in values)))]
        joined += [*([flag] if flag else []), *values]
    return joined


def refuse_spaced_lists(arguments: Sequence[str], parser: jsonargparse.ArgumentParser) -> None:
    """Refuse several values after a flag that takes a list, before the parser complains about each of them.

    Args:
        arguments: of the command.
        parser: of the command.

    Raises:
        DfmsdError: says how the list is written.
    """
    for flag, values in _grouped(arguments):
        kind = str(getattr(parser._option_string_actions.get(flag), "_typehint", ""))
        plain = re.search(r"(list|tuple)\[(?!dict|dfmsd)", kind) or re.fullmatch(r"--stages\.\d+\.teacher", flag)
        if plain and len(values) > 1 and not any(value.startswith("[") for value in values):
            raise DfmsdError(f"{flag}: a list is one argument, in brackets: {flag} '[{', '.join(values)}]'")


def _grouped(arguments: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Part arguments into flags and the values that follow them; those before the first flag have an empty one."""
    groups: list[tuple[str, list[str]]] = [("", [])]
    for argument in arguments:
        if re.match(r"--?[A-Za-z]", argument):
            flag, equals, value = argument.partition("=")
            groups.append((flag, [value] if equals else []))
        else:
            groups[-1][1].append(argument)
    return groups


def refuse_two_sizes(arguments: Sequence[str]) -> None:
    """Refuse a width and a height after ``--image-size``, before the second number is taken for a file.

    Raises:
        DfmsdError: two sizes are given.
    """
    parts = [part for argument in arguments for part in argument.split("=", 1)]
    for flag, first, second in zip(parts, parts[1:], [*parts[2:], ""], strict=False):
        if not re.fullmatch(r"--(data\.)?image[-_]size", flag):
            continue
        follows = first.isdecimal() and second.isdecimal() and not Path(second).exists()
        if follows or re.fullmatch(r"[\[(]?\d+\s*[x,]\s*\d+[\])]?", first):
            given = f"{first} {second}" if follows else first
            raise DfmsdError(f"{flag}: one size, the longer side in pixels, is meant, got {given}")


def merge_list_flags(parser: jsonargparse.ArgumentParser, arguments: Sequence[str]) -> list[str]:
    """Merge flags into list entries, such as ``--stages.0.epochs 3``, into one ``--stages [...]``.

    Args:
        parser: parses the remaining flags.
        arguments: flags of the command.

    Raises:
        DfmsdError: the entry does not exist, or the flag has no value.
    """
    rest: list[str] = []
    changes: dict[str, str] = {}
    remaining = iter(arguments)
    for argument in remaining:
        flag, equals, value = argument.partition("=")
        if flag.startswith(tuple(f"--{key}." for key in LIST_KEYS)):
            changes[flag] = value if equals else next(remaining, "")
        else:
            rest.append(argument)
    if not changes:
        return rest
    silent = [argument for argument in rest if not argument.startswith("--print-config")]  # it would print and exit
    parsed = parser.parse_args(silent).as_dict()
    values = json.loads(json.dumps({key: parsed[key] for key in LIST_KEYS}))
    for flag, value in changes.items():
        _set(values, flag, value)
    for key in dict.fromkeys(flag[2:].partition(".")[0] for flag in changes):
        rest += [f"--{key}", json.dumps(values[key])]
    return rest


def _set(values: Any, flag: str, value: str) -> None:
    """Set the value that a flag such as ``--stages.0.epochs`` refers to."""
    *path, last = flag.removeprefix("--").split(".")
    node = values
    for name, part in pairwise([*path, last]):
        if isinstance(node, dict) and name == "loss" and isinstance(node.get(name), str):
            node[name] = {"name": node[name]}
        if isinstance(node, dict) and name == "near" and not isinstance(node.get(name), dict):
            node[name] = {}
        node = node[int(name)] if isinstance(node, list) else node.setdefault(name, {})
        if isinstance(node, list) and not (part.isdecimal() and int(part) < len(node)):
            hint = f"pass --{name}.0.KEY" if node else f"pass a --config with {name}, or --{name} '[...]'"
            raise DfmsdError(f"{flag}: {name} has {len(node)} entries, counted from 0; {hint}")
        if isinstance(node, dict) and part.isdecimal():
            raise DfmsdError(f"{flag}: {name} is not a list; leave out the number, or pass a list as --{name}")
        if not isinstance(node, list | dict):
            raise DfmsdError(f"{flag}: {name} has no keys")
    if isinstance(node, list):
        raise DfmsdError(f"{flag}: name the key too, such as {flag}.{next(iter(node[int(last)]))}")
    if not value:
        raise DfmsdError(f"{flag}: its value is missing")
    try:
        node[last] = jsonargparse.get_loader("yaml")(value)  # as in a config file; plain YAML takes 1e-5 for text
    except yaml.YAMLError as error:
        message = one_line(error).replace('in "<unicode string>", ', "")
        raise DfmsdError(f"{flag}: {value!r} is not valid YAML ({message})") from error
