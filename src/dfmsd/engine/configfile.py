"""Configs from YAML files, flags and Python values, parsed by jsonargparse."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_type_hints

import jsonargparse
import yaml

from dfmsd.detectors.config import DetectorConfig
from dfmsd.engine.config import DistillConfig, Recipe, TrainConfig
from dfmsd.engine.explanation import explain
from dfmsd.engine.near import expand
from dfmsd.engine.yamlcheck import check_yaml
from dfmsd.errors import DfmsdError
from dfmsd.runfolder import RunFolder
from dfmsd.utils.coerce import AUTO
from dfmsd.utils.removed import drop_removed

C = TypeVar("C")


class HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """Help without Python types and empty defaults, where nothing is required that has a default or may be left out."""

    def _get_type_str(self, action: argparse.Action) -> None:
        return None

    def _get_help_string(self, action: argparse.Action) -> str:
        text = super()._get_help_string(action).replace("``", "`").replace("(required, default: ", "(default: ")
        if action.nargs == argparse.ZERO_OR_MORE:
            text = text.removesuffix(" (required)")
        silent = action.default is None or action.default is False or action.default in ([], {})
        return text.removesuffix(" (default: %(default)s)") if silent else text


class Parser(jsonargparse.ArgumentParser):
    """A parser that prints the keys of its config without the other flags, so that the output is a config file."""

    config: type[Any] | None = None

    def dump(self, namespace: jsonargparse.Namespace, *args: Any, **kwargs: Any) -> str:
        """Return the YAML text of a namespace."""
        namespace = namespace.clone()
        keys = vars(namespace).keys() if self.config is None else {field.name for field in fields(self.config)}
        for flag in vars(namespace).keys() - keys:
            namespace.pop(flag)
        text: str = super().dump(namespace, *args, **kwargs)
        return text


def command_parser(description: str) -> Parser:
    """Build an empty parser that raises instead of exiting, and refuses abbreviated flags: they may be typos."""
    return Parser(
        exit_on_error=False,
        allow_abbrev=False,
        description=description,
        formatter_class=HelpFormatter,
        print_config="--print-config",
    )


def config_parser(config: type[Any]) -> Parser:
    """Build a parser whose flags are the keys of a config, plus ``--config FILE``."""
    parser = command_parser((config.__doc__ or "").splitlines()[0])
    parser.config = config
    parser.add_argument("--config", action="config", metavar="FILE", help="YAML file; flags override its values")
    parser._option_string_actions["--print-config"].help = "print the resulting config as YAML and exit"
    parser.add_class_arguments(config, nested_key=None, fail_untyped=False)
    detectors = [name for name, kind in get_type_hints(config).items() if kind is DetectorConfig]
    # not those of a DetectorConfig without `init`, which has chosen them
    parser.set_defaults({f"{name}.{key}": AUTO for name in detectors for key in ("arch", "backbone")})
    for key in getattr(config, "removed", {}):
        parser.add_argument(f"--{key}", type=Any, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def build_config(config: type[C], values: Any) -> C:
    """Build a config from parsed values, ignoring those that are not fields of it.

    A detector that starts from another one gets its architecture.

    Raises:
        DfmsdError: a value that the config refuses, or that was removed, or a detector to start from that cannot be.
    """
    return with_architectures(saved_config(config, values))


def saved_config(config: type[C], values: Any) -> C:
    """Build a config as `build_config` does, from values that it has completed before."""
    present = drop_removed(vars(values), getattr(config, "removed", {}))
    known = [field.name for field in fields(config)]  # type: ignore[arg-type]
    return config(**{name: value for name, value in present.items() if name in known})


def with_architectures(config: C) -> C:
    """Complete the detectors of a config that start from another one, see `adopt_architecture`.

    Raises:
        DfmsdError: there is no such detector, or it has another architecture.
    """
    values = {field.name: getattr(config, field.name) for field in fields(config)}  # type: ignore[arg-type]
    starting = {name: value for name, value in values.items() if isinstance(value, DetectorConfig) and value.init}
    if not starting:
        return config

    from dfmsd.detectors import adopt_architecture  # here, since torchvision and timm take seconds to import

    adopted: dict[str, Any] = {}
    for name, value in starting.items():
        try:
            adopted[name] = adopt_architecture(value)
        except DfmsdError as error:
            raise DfmsdError(f"{name}.init: {error}") from error
    return replace(config, **adopted)  # type: ignore[type-var]


def read_config(config: type[C], path: Path, build: Callable[[type[C], Any], C] = build_config) -> C:
    """Read a config from a YAML file.

    Args:
        config: its class.
        path: the file.
        build: `build_config`, or `saved_config` for the file of a run folder.

    Raises:
        DfmsdError: the file is missing, or contains an unknown key or a bad value.
    """
    check_yaml(path, config)
    parser = config_parser(config)
    try:
        return build(config, parser.instantiate(parser.parse_args(["--config", str(path)])))
    except jsonargparse.ArgumentError as error:
        raise DfmsdError(f"{path}: {explain(error, parser)}") from error
    except DfmsdError as error:
        raise DfmsdError(f"{path}: {error}") from error


def parse_config(config: type[C], values: Mapping[str, Any]) -> C:
    """Build a config from plain Python values, with the checks of a YAML file.

    Raises:
        DfmsdError: an unknown key, a wrong type or a bad value.
    """
    _check_sections(config, values)
    parser = config_parser(config)
    try:
        return build_config(config, parser.instantiate(parser.parse_object(dict(values))))
    except jsonargparse.ArgumentError as error:
        raise DfmsdError(explain(error, parser)) from error


def _check_sections(config: type[Any], values: Mapping[str, Any], prefix: str = "") -> None:
    for name, kind in get_type_hints(config).items():
        value = values.get(name)
        if not (isinstance(kind, type) and is_dataclass(kind)) or isinstance(value, str | NoneType):
            continue
        if not isinstance(value, Mapping):
            raise DfmsdError(f"{prefix}{name}: expected keys of {kind.__name__}, got {type(value).__name__}")
        _check_sections(kind, value, f"{prefix}{name}.")


def read_recipe(path: Path) -> Recipe:
    """Read the YAML file of a training or of a distillation, which its keys tell apart.

    Raises:
        DfmsdError: the file is missing, or contains an unknown key or a bad value.
    """
    check_yaml(path)
    keys: Any = yaml.safe_load(path.read_text(encoding="utf-8-sig")) if path.is_file() else {}
    distills = bool({"student", "stages"} & keys.keys())
    return read_config(DistillConfig, path) if distills else read_config(TrainConfig, path)


def read_run_config(run: Path) -> DistillConfig:
    """Read the config of a run folder as a distillation of ordinary stages, which for a training have no teacher.

    Raises:
        DfmsdError: the file is missing, damaged, or of an incompatible version.
    """
    folder = RunFolder(run)
    if "model" in folder.read_config():
        return read_config(TrainConfig, folder.config_file, saved_config).as_distillation()
    return expand(read_config(DistillConfig, folder.config_file, saved_config)).config
