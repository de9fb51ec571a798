from __future__ import annotations

import logging
import subprocess
import sys
import warnings

import pytest
from rich.live import Live

from dfmsd.utils.console import console, quiet, quieted

LOST = """
import os, sys
from dfmsd.utils.console import console
reader, writer = os.pipe()
os.dup2(writer, 2)
os.close(reader)
console.print("to nobody")
console.print("to nobody")
print("the run goes on", file=sys.stderr)
print("done")
"""


def test_lines_go_to_standard_error_above_a_dashboard_too(capsys: pytest.CaptureFixture[str]) -> None:
    console.print("[a] line")
    with Live("dashboard", console=console):
        console.print("another")
    assert capsys.readouterr().err.splitlines()[:2] == ["[a] line", "another"]


def test_a_standard_error_without_reader_does_not_end_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_quiet_silences_warnings_only(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet():
        warnings.warn("a warning", stacklevel=1)
        logging.getLogger("other").warning("a warning")
        logging.getLogger("other").error("an error")
    logging.getLogger("other").error("after")
    assert "a warning" not in capsys.readouterr().err


def test_a_quieted_logger_gets_its_level_back(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("noisy")
    logger.setLevel(logging.INFO)
    with quieted(logger):
        logger.warning("left out")
        logger.error("shown")
    assert caplog.messages == ["shown"]
    assert logger.level == logging.INFO
