"""The command line as tests run it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.helpers.fixtures import TINY_BACKBONE

from dfmsd.cli import main as cli

STUDENT = {"backbone": TINY_BACKBONE, "fpn_channels": 16, "head_convs": 1}
"""Keys of a small student."""


class Command:
    """The command line ``dfmsd``, run in this process and in its own folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys
        monkeypatch.chdir(folder)

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        """Return exit status, standard output and standard error."""
        self.monkeypatch.setattr(sys, "argv", ["dfmsd", *map(str, arguments)])
        self.capsys.readouterr()
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        out, err = self.capsys.readouterr()
        return status, out, err

    def refusal(self, *arguments: object) -> str:
        """Return the one-line error of a command that must be refused and leave nothing behind."""
        before = sorted(self.folder.rglob("*"))
        status, out, err = self(*arguments)
        assert status == 2
        assert out == ""
        assert err.startswith("dfmsd: error: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert "Traceback" not in err
        assert sorted(self.folder.rglob("*")) == before
        return err

    def write(self, name: str, content: Any) -> str:
        """Write a YAML file and return its name."""
        (self.folder / name).write_text(yaml.safe_dump(content))
        return name
