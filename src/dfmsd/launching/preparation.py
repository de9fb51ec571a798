"""What comes before the runs of a command, done by a machine of the runs: ``python -m MODULE CONFIG``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from dfmsd.launching.child import carry_out
from dfmsd.launching.jobs import run_one
from dfmsd.launching.launcher import Launcher
from dfmsd.utils.console import console
from dfmsd.utils.files import write_text

ALLOW_WEAK = "--allow-weak-teacher"


def prepare_elsewhere(module: str, config: Any, launcher: Launcher, what: str, *, allow_weak: bool) -> None:
    """Let another machine run a module that ends with `main`, and wait for it.

    Args:
        module: its name.
        config: dataclass with the folder ``out``.
        launcher: finds the machine.
        what: what the module does, for a line on the console.
        allow_weak: accept teachers that know none of the classes or have an AP of about 0.

    Raises:
        DfmsdError: it cannot be started, or fails.
    """
    folder = Path(config.out, "preparation")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.yaml"
    write_text(file, yaml.safe_dump(asdict(config), sort_keys=False))
    console.print(f"{what}: {folder}", highlight=False)
    run_one(launcher, ["-m", module, str(file)] + [ALLOW_WEAK] * allow_weak, folder)


def main(prepare: Callable[..., object]) -> None:
    """Do what the arguments of this process say, and exit.

    Args:
        prepare: called with the file of the config and ``allow_weak``.
    """
    sys.exit(carry_out(lambda: prepare(Path(sys.argv[1]), allow_weak=ALLOW_WEAK in sys.argv)))
