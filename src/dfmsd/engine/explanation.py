"""Complaints of a parser about keys, flags and values, in one line of plain words with the nearest that exists."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import fields
from difflib import get_close_matches

import jsonargparse

from dfmsd.distillation.stages import StageConfig
from dfmsd.errors import one_line

PLAIN: dict[str, str | Callable[[re.Match[str]], str]] = {
    r"Problem with given class_path '[\w.]+': ": "",
    r'Parser key "([\w.]+)": ': r"\1: ",
    r"Not a valid subclass of (\w+)\W.*Got value: (.*?) Subclass types expect.*": r"expected keys of \1, got \2",
    r"Expected an? (.*?)\. Got value: ": r"expected \1, got ",
    r"(?:typing\.)?Literal\[(.*?)\]": r"one of \1",
    r"<class '(\w+)'>": r"\1",
    r"Does not validate .* Subtypes: \[(\w+(?:\[[\w, ]*\])?), NoneType\] Errors: .* Given value: ": (
        r"expected \1, got "
    ),
    r"Does not validate .* Subtypes: \[(.*)\] Errors: .* Given value: ": lambda kinds: (
        f"expected one of {kinds[1].replace('one of ', '').replace('NoneType', 'null')}, got "
    ),
    r"stages: Expected a dot import path string: (.*)": (
        r"stages: each entry needs keys such as {teacher: \1, epochs: 12}, got \1"
    ),
}
"""Patterns of jsonargparse's messages -> plain text, in the order in which they are replaced."""

DEVICE = "the GPU is used if there is one; CUDA_VISIBLE_DEVICES= before the command hides it"
"""What chooses the device, for those who look for a key or flag."""


def explain(error: jsonargparse.ArgumentError, parser: jsonargparse.ArgumentParser) -> str:
    """Turn a parser's complaint into one line that names the nearest existing key, flag or choice."""
    message = one_line(error).removesuffix(".")
    for pattern, plain in PLAIN.items():
        message = re.sub(pattern, plain, message)
    if missing := re.search(r"the following arguments are required: (.*)", message):
        flags = {action.dest: action.option_strings[0] for action in parser._actions if action.option_strings}
        missed = (name.rpartition(".")[2] for name in missing[1].split(", "))
        return f"missing: {', '.join(flags.get(name, name) for name in missed)}"
    if choice := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
        return _hinted(message, choice[1], re.findall(r"[\w-]+", choice[2]), "")
    if flag := re.search(r"unrecognized arguments: --([\w.-]+)", message):
        return _hinted_flag(message, flag[1], parser)
    if file := re.search(r"unrecognized arguments: ([^-\s]\S*\.ya?ml)$", message):
        return f"{message}; write --config {file[1]}" if "config" in _option_names(parser) else message
    if key := re.search(r"(?:Group '(\w+)' does not accept o|accept o|O)ption '([^']+)'", message):
        name = ".".join(filter(None, key.groups()))
        place = message.partition(": ")[0] + ": " if ": Option" in message else ""
        return _hinted_key(f"{place}unknown key {name}", name, parser)
    if unread := re.search(r"([\w.]+): Unable to load config '(.*?)'", message):
        keys = [name for name in _option_names(parser) if name.startswith(f"{unread[1]}.")]
        return f"{unread[1]}: {unread[2]!r} is not a YAML file with its keys, which are {', '.join(keys)}"
    return message


def _option_names(parser: jsonargparse.ArgumentParser) -> list[str]:
    actions = (action for action in parser._actions if action.help != argparse.SUPPRESS)
    options = (option for action in actions for option in action.option_strings)
    return [option.removeprefix("--") for option in options if not option.endswith("+")]


def _hinted_flag(message: str, name: str, parser: jsonargparse.ArgumentParser) -> str:
    """Add to a message about an unknown flag the one that it may mean."""
    names = _option_names(parser)
    if name == "device":
        return f"{message}; {DEVICE}"
    elsewhere = [f"stages.0.{name}"] if name in _keys_of_stages(names) else _elsewhere(name, names)
    if elsewhere:
        return f"{message}; did you mean {' or '.join(f'--{other}' for other in elsewhere)}?"
    return _hinted(message, name, names, "--")


def _hinted_key(message: str, name: str, parser: jsonargparse.ArgumentParser) -> str:
    """Add to a message about an unknown key where it belongs, the nearest key, or all keys of its group."""
    if ":" in name:
        return f"{message}; a blank is missing after the colon"
    names = _option_names(parser)
    of_stage = _keys_of_stages(names)
    if name in of_stage:
        return f"{message}; it belongs to an entry of stages"
    if name == "device":
        return f"{message}; {DEVICE}"
    group, _, last = name.rpartition(".")
    keys = [other.removeprefix(f"{group}.") for other in names if group and other.startswith(f"{group}.")]
    if keys and not get_close_matches(last, keys, n=1):
        return f"{message}; {group} has {', '.join(keys)}"
    elsewhere = _elsewhere(name, names)
    if elsewhere:
        return f"{message}; did you mean {' or '.join(elsewhere)}?"
    return _hinted(message, name, [*names, *of_stage], "")


def _keys_of_stages(names: list[str]) -> list[str]:
    return [field.name for field in fields(StageConfig)] if "stages" in names else []


def _elsewhere(name: str, names: list[str]) -> list[str]:
    """Return the keys of groups that a key without a group may mean: ``optim.lr`` for ``lr``."""
    return [other for other in names if "." not in name and other.endswith(f".{name}")]


def _hinted(message: str, name: str, names: list[str], prefix: str) -> str:
    near = get_close_matches(name, names, n=1)
    return f"{message}; did you mean {prefix}{near[0]}?" if near else message
